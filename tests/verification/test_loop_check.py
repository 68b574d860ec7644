"""A sampler's file is judged by what it does at each step and in the end: right ones pass, wrong ones are named."""

import dataclasses
import itertools
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor

from flowopt.errors import UserError
from flowopt.program.sampler_program import SamplerProgram
from flowopt.report.loop import LoopCase
from flowopt.report.verdict import Outcome, Verdict
from flowopt.sampling import ClassifierFree, Epilogue, fold
from flowopt.sampling.plain_loop import PlainLoop
from flowopt.sampling.roles import roles_of
from flowopt.verification.inputs.case import Case
from flowopt.verification.loop_check import Step, check_loop
from flowopt.verification.loop_evidence import Inputs, LoopEvidence, Loops, Sampled, loop_evidence
from tests.sampling.networks import CHANNELS, SIZE, Labelled, captured
from tests.sampling.samplers import heun

GUIDANCE = ClassifierFree(2.0, {"label": 9})


def batch(scale: float = 1.0) -> Case:
    noise = scale * torch.randn(2, CHANNELS, SIZE, SIZE, generator=torch.Generator().manual_seed(4))
    return Case("traced", {"batch": 2}, {"noise": noise, "label": torch.tensor([1, 7])})


@cache
def known() -> tuple[SamplerProgram, Loops]:
    program, spec = captured(Labelled()), heun(3)
    plain = PlainLoop(program, roles_of(program, 1), spec, GUIDANCE, Epilogue())
    exact = dataclasses.replace(plain, program=program.raised_copy())
    folded = fold(program, spec, guidance=GUIDANCE)
    return folded, Loops(exact.run, plain.run, folded)


def evidence(loops: Loops, scale: float = 1.0) -> LoopEvidence:
    found = loop_evidence(loops, batch(scale))
    assert isinstance(found, LoopEvidence)
    return found


def judged(
    *,
    whole: Callable[[Tensor], Tensor] = lambda y: y,
    step: Callable[[Step], Step] = lambda run: run,
    library: Sampled | None = None,
) -> tuple[Verdict, LoopCase]:
    """A folded sampler with something done to it."""
    folded, loops = known()
    one = evidence(dataclasses.replace(loops, given_loop=library))

    def candidate(inputs: Inputs) -> Tensor:
        return whole(folded.run_named(inputs)["sample"])

    verdict, (case,) = check_loop([one], candidate, step(folded.step.run_named))
    return verdict, case


def gates(verdict: Verdict) -> list[str]:
    assert verdict.outcome is Outcome.DIFFERENT
    return [f.gate for f in verdict.findings]


def test_the_folded_sampler_is_the_networks_loop() -> None:
    verdict, case = judged()
    assert verdict.outcome is Outcome.EQUIVALENT
    assert case.fold_error < 1e-12
    assert case.error < 2e-6
    assert len(case.step_errors) == 6
    assert 1.0 <= case.amplification < 100


def test_a_sample_that_is_a_little_off_differs() -> None:
    verdict, case = judged(whole=lambda y: y * (1 + 4e-6 * 10))
    assert gates(verdict) == ["loop"]
    assert case.error > case.allowed


def test_a_step_that_is_off_is_named() -> None:
    def wrong(run: Step) -> Step:
        calls = itertools.count()

        def step(inputs: Inputs) -> dict[str, Tensor]:
            factor = 1.0001 if next(calls) == 4 else 1.0
            return {name: value * factor for name, value in run(inputs).items()}

        return step

    verdict, _ = judged(step=wrong)
    assert gates(verdict) == ["step"]
    assert verdict.findings[0].where.startswith("step 4")


def test_a_sample_that_is_not_finite_differs() -> None:
    assert gates(judged(whole=lambda y: y * float("nan"))[0]) == ["loop"]


def test_a_sample_of_another_shape_differs() -> None:
    assert gates(judged(whole=lambda y: y[:1])[0]) == ["loop"]


@pytest.mark.parametrize(("factor", "is_right"), [(1.0, True), (1.001, False)])
def test_a_librarys_loop_is_compared_too(factor: float, is_right: bool) -> None:
    _, loops = known()
    verdict, case = judged(library=lambda inputs: loops.original(inputs) * factor)
    assert bool(verdict) is is_right
    assert case.reference_error is not None
    assert is_right or gates(verdict) == ["library"]


def wrong_folds() -> dict[str, Callable[[SamplerProgram], SamplerProgram]]:
    def with_loop(folded: SamplerProgram, **changes: object) -> SamplerProgram:
        return dataclasses.replace(folded, loop=dataclasses.replace(folded.loop, **changes))  # type: ignore[arg-type]

    def shifted(folded: SamplerProgram) -> SamplerProgram:
        exact = {name: table.roll(1, 0) for name, table in folded.loop.exact_tables.items()}
        return with_loop(folded, exact_tables=exact)

    return {
        "rows of the step before": shifted,
        "one step less": lambda folded: with_loop(folded, steps=folded.loop.steps - 1),
        "another guidance": lambda _: fold(captured(Labelled()), heun(3), guidance=ClassifierFree(2.001, {"label": 9})),
        "another label for none": lambda _: fold(
            captured(Labelled()), heun(3), guidance=ClassifierFree(2.0, {"label": 8})
        ),
        "another grid": lambda _: fold(captured(Labelled()), heun(4), guidance=GUIDANCE),
    }


@pytest.mark.parametrize("defect", wrong_folds())
def test_a_wrong_fold_is_found_in_float64(defect: str) -> None:
    folded, loops = known()
    wrong = wrong_folds()[defect](folded)
    one = evidence(dataclasses.replace(loops, folded=wrong))
    verdict, _ = check_loop([one], lambda inputs: loops.original(inputs), wrong.step.run_named)
    assert "fold" in gates(verdict)


def test_without_a_finite_sample_nothing_is_decided() -> None:
    _, loops = known()
    found = loop_evidence(loops, batch(float("inf")))
    assert isinstance(found, str)
    verdict, cases = check_loop([found], loops.original, lambda inputs: dict(inputs))
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.notes == (found,)
    assert not cases


def test_what_is_allowed_grows_with_what_the_loop_makes_of_a_small_change() -> None:
    _, loops = known()
    calm = evidence(loops).amplification
    grown = evidence(dataclasses.replace(loops, exact=lambda inputs: 50 * inputs["noise"].double())).amplification
    assert 1.0 <= calm < 5
    assert grown == pytest.approx(50)


def test_a_condition_that_the_network_cannot_take_is_named() -> None:
    _, loops = known()
    case = batch()
    found = loop_evidence(loops, Case("traced", {}, {**case.inputs, "label": torch.tensor([1, 77])}))
    assert isinstance(found, str)
    assert "given noise [2, 4, 6, 6], label [2]: index out of range" in found


def test_a_librarys_loop_of_another_shape_is_the_callers_mistake() -> None:
    with pytest.raises(UserError, match=r"returns \[1, 4, 6, 6\], and the samples are \[2, 4, 6, 6\]"):
        judged(library=lambda inputs: inputs["noise"][:1])
