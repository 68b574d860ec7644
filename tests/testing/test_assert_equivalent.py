"""assert_equivalent must fail for models that differ, and say where."""

from pathlib import Path
from typing import Any

import pytest
import torch

import flowopt
from flowopt.errors import UserError
from flowopt.program.program import Program
from flowopt.report.verdict import Finding, Outcome, Verdict
from flowopt.testing import assert_equivalent

DIFFERENT = Verdict(
    Outcome.DIFFERENT, tuple(Finding("ratio", f"output.{i}", "traced[batch=2]", "too far") for i in range(9)), seed=3
)


def with_bias(program: Program, change: float) -> Program:
    """The program with one element of its bias changed."""
    changed = program.copy()
    changed.tensors["fc.bias"] = changed.tensors["fc.bias"] * torch.tensor([1.0, 1.0 + change, 1.0])
    return changed


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Options that reach ``flowopt.verify``, which finds a difference and saves it where it is asked to."""
    found: list[dict[str, Any]] = []

    def verify(*_: object, level: str, reproducer: Path | None, **options: object) -> Verdict:
        found.append({"level": level, "reproducer": reproducer, **options})
        if reproducer is not None and options.get("seed") != 0:
            reproducer.write_bytes(b"inputs")
        return DIFFERENT

    monkeypatch.setattr("flowopt.workflows.verify.verify", verify)
    return found


def test_a_program_is_equivalent_to_itself(program: Program) -> None:
    assert assert_equivalent(program, with_bias(program, 0.0)).power < 1e-5


def test_a_program_is_not_equivalent_to_one_with_another_bias(program: Program) -> None:
    with pytest.raises(
        AssertionError, match=r"different: ratio gate: output: .* \(case traced\[batch=2\]\) and \d more"
    ):
        assert_equivalent(program, with_bias(program, 0.01))


def test_options_reach_verify(calls: list[dict[str, Any]]) -> None:
    with pytest.raises(AssertionError):
        assert_equivalent("one", "other", level="full", seed=3, trust="code")
    assert calls == [{"level": "full", "reproducer": None, "seed": 3, "trust": "code"}]


def test_the_message_is_short_and_says_how_it_was_checked(calls: list[dict[str, Any]]) -> None:
    with pytest.raises(AssertionError) as raised:
        assert_equivalent("one", "other", level="full")
    lines = str(raised.value).splitlines()
    assert lines[0] == "different: ratio gate: output.0: too far (case traced[batch=2]) and 8 more"
    assert lines[1] == "  also    ratio gate: output.1: too far (case traced[batch=2])"
    assert lines[-1] == "  checked with level='full', seed=3"
    assert len(lines) == 6


def test_the_message_names_the_file_of_the_worst_case(calls: list[dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="worst case saved to /.*/worst.npz; to replay it, pass that file"):
        assert_equivalent("one", "other", reproducer=tmp_path / "worst.npz")


def test_the_message_does_not_name_the_file_of_an_earlier_comparison(
    calls: list[dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "worst.npz").touch()
    with pytest.raises(AssertionError) as raised:
        assert_equivalent("one", "other", reproducer=tmp_path / "worst.npz", seed=0)
    assert "worst" not in str(raised.value)


def test_the_worst_case_replays(program: Program, tmp_path: Path) -> None:
    other, worst = with_bias(program, 0.01), tmp_path / "worst.npz"
    with pytest.raises(AssertionError, match="worst case saved"):
        assert_equivalent(program, other, reproducer=worst)
    replayed = flowopt.verify(program, other, inputs=worst)
    assert any(finding.case.startswith("data:worst.npz") for finding in replayed.findings)


def test_nothing_decided_is_a_failure_with_its_reason(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    undecided = Verdict(Outcome.INCONCLUSIVE, notes=("dropout draws random numbers",))
    monkeypatch.setattr("flowopt.workflows.verify.verify", lambda *_, **__: undecided)
    with pytest.raises(AssertionError, match="inconclusive: .*dropout draws random numbers"):
        assert_equivalent(program, program)


def test_refuses_a_level_that_does_not_exist(program: Program) -> None:
    level: Any = "thorough"
    with pytest.raises(UserError, match="level='thorough' must be 'quick' or 'full'"):
        assert_equivalent(program, program, level=level)
