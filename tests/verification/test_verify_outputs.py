"""Anything that maps named inputs to named outputs, against the evidence of the original."""

import math
from collections.abc import Mapping
from functools import cache

import pytest
import torch
from torch import Tensor

from flowopt.program.program import Program
from flowopt.report.verdict import Outcome, Verdict
from flowopt.verification.evidence import Evidence, collect_evidence
from flowopt.verification.verify_outputs import Runner, verify_outputs
from tests.verification.substitute import captured


def program() -> Program:
    return captured(torch.sin)


@cache
def evidence() -> Evidence:
    return collect_evidence(program())


def verdict(change: Runner) -> Verdict:
    """Of the program itself with its outputs changed."""
    return verify_outputs(evidence(), lambda inputs: change(program().run_named(inputs)))


def test_the_program_itself_is_equivalent() -> None:
    result = verdict(lambda out: out)
    assert result.outcome is Outcome.EQUIVALENT and result and result.findings == ()
    assert len(result.cases) == 4 and len(result.figures) == 4
    assert all(f.twin_error is None for f in result.figures)
    assert result.power > 0


@pytest.mark.parametrize(
    ("change", "gate", "message"),
    [
        (lambda out: {"output": out["output"] * 1.001}, "ratio", "against float64"),
        (lambda out: {"output": out["output"][..., :1]}, "structure", "not torch.float32"),
        (lambda out: {"output": out["output"].double()}, "structure", "torch.float64"),
        (lambda out: {"output": torch.nan_to_num(out["output"])}, "specials", "swallowed"),
        (lambda out: {"output": out["output"] / 0.0 * math.nan}, "specials", "introduced"),
        (lambda out: {}, "structure", "the candidate lacks this output"),
        (lambda out: {**out, "more": out["output"]}, "structure", "the original has not"),
    ],
)
def test_each_gate_fires(change: Runner, gate: str, message: str) -> None:
    result = verdict(change)
    assert result.outcome is Outcome.DIFFERENT and not result
    assert result.findings[0].gate == gate
    assert message in result.findings[0].message
    assert result.reason


def test_a_candidate_that_does_not_run() -> None:
    def fail(inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        raise OSError("no such kernel\nand a traceback")

    result = verify_outputs(evidence(), fail)
    assert result.outcome is Outcome.DIFFERENT
    assert result.findings[0].message == "it does not run: no such kernel"


def test_a_candidate_that_writes_into_its_input() -> None:
    def careless(inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        found = program().run_named(inputs)
        inputs["x"].add_(1.0)
        return found

    result = verify_outputs(evidence(), careless)
    assert {f.message for f in result.findings} == {"the candidate wrote into its input"}
    assert verdict(lambda out: out)  # the evidence's own inputs are as they were


def test_no_case_is_inconclusive() -> None:
    result = verify_outputs(Evidence((), ("traced: the original does not run",), 0), lambda inputs: {})
    assert result.outcome is Outcome.INCONCLUSIVE and not result
    assert "traced: the original does not run" in result.reason
