"""Candidates that give the right numbers once, and misbehave in exactly one way; and honest ones."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.report.verdict import Finding
from flowopt.runtime.onnx_session import open_session
from flowopt.verification.behaviour.answers import Runner
from flowopt.verification.behaviour.behaviour import check_behaviour
from flowopt.verification.evidence import Evidence, collect_evidence
from flowopt.verification.inputs.case import Case
from flowopt.verification.inputs.cases import case_of, quick_cases
from flowopt.verification.inputs.regimes import normal
from tests.lowering import models as lowering_models
from tests.lowering.build import built
from tests.verification.substitute import captured
from tests.zoo.models import ZOO

Inputs = Mapping[str, Tensor]
Outputs = Mapping[str, Tensor]


def program() -> Program:
    return captured(torch.sin)


@cache
def evidence() -> Evidence:
    """Of the quick cases, and of the samples 2 and 0 of ``traced`` on their own."""
    cases = quick_cases(program(), 0)
    return collect_evidence(program(), cases=(*cases, part_of(cases[0], (2, 0))))


def part_of(whole: Case, indexes: tuple[int, ...]) -> Case:
    inputs = {name: value[list(indexes)] for name, value in whole.inputs.items()}
    return replace(whole, name="part", inputs=inputs, is_natural=False, samples=(whole.name, indexes))


def honest(inputs: Inputs) -> dict[str, Tensor]:
    return program().run_named(inputs)


def findings(run: Runner, **options: object) -> list[Finding]:
    seen = check_behaviour(evidence(), run, **options)  # type: ignore[arg-type]  # those of the call
    return [one for one in seen if isinstance(one, Finding)]


def notes(run: Runner) -> list[str]:
    return [one for one in check_behaviour(evidence(), run) if isinstance(one, str)]


class Counting:
    """The honest answer, and how often it was asked for."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, inputs: Inputs) -> dict[str, Tensor]:
        self.calls += 1
        return honest(inputs)


class Drifting(Counting):
    """Two roundings off in every call but the first."""

    def __call__(self, inputs: Inputs) -> dict[str, Tensor]:
        off = 1.0 + 1.2e-7 * (self.calls > 0)
        return {name: value * off for name, value in super().__call__(inputs).items()}


class Remembering:
    """Adds a trace of the last case that had another shape."""

    def __init__(self) -> None:
        self.before: tuple[int, ...] = ()
        self.trace = 0.0

    def __call__(self, inputs: Inputs) -> dict[str, Tensor]:
        shape = tuple(inputs["x"].shape)
        self.trace = self.trace if shape == self.before or not self.before else 1e-7
        self.before = shape
        return {name: value + self.trace for name, value in honest(inputs).items()}


class OneBuffer:
    """Writes every answer of one shape into the same memory."""

    def __init__(self) -> None:
        self.buffers: dict[tuple[int, ...], Tensor] = {}

    def __call__(self, inputs: Inputs) -> dict[str, Tensor]:
        value = honest(inputs)["output"]
        return {"output": self.buffers.setdefault(tuple(value.shape), torch.empty_like(value)).copy_(value)}


class Cached:
    """Computes the answer to the same inputs once, and hands out the cached tensor itself."""

    def __init__(self) -> None:
        self.cache: dict[bytes, dict[str, Tensor]] = {}

    def __call__(self, inputs: Inputs) -> dict[str, Tensor]:
        x = inputs["x"]
        key = x.contiguous().numpy().tobytes() + bytes(x.shape)
        if key not in self.cache:
            self.cache[key] = honest(inputs)
        return self.cache[key]


class Racing(Counting):
    """With four threads, every other answer is an ulp off."""

    def __call__(self, inputs: Inputs) -> dict[str, Tensor]:
        off = super().__call__(inputs)["output"]
        return {"output": off * (1 + 2e-7) if torch.get_num_threads() == 4 and self.calls % 2 else off}


def split_badly(inputs: Inputs) -> dict[str, Tensor]:
    """With four threads, the last sample is lost."""
    value = honest(inputs)["output"]
    if torch.get_num_threads() == 4:
        value[-1] = 0.0
    return {"output": value}


def blind_to(look: Callable[[Tensor], Tensor]) -> Runner:
    """A kernel that reads memory in a way of its own."""
    return lambda inputs: honest({name: look(value) for name, value in inputs.items()})


def without_strides(value: Tensor) -> Tensor:
    return value.as_strided(value.shape, torch.empty(value.shape).stride())


def without_offset(value: Tensor) -> Tensor:
    return value.as_strided(value.shape, value.stride(), 0)


def without_order(value: Tensor) -> Tensor:
    """Strides sorted: of transposed memory, this is another tensor; the dense and strided ones stay."""
    return value.as_strided(value.shape, sorted(value.stride(), reverse=True))


def without_repeats(value: Tensor) -> Tensor:
    """Of rows with stride 0, only the first is read."""
    return torch.cat((value[:1], torch.zeros_like(value[1:]))) if value.stride(0) == 0 else value


def refuses_strides(inputs: Inputs) -> dict[str, Tensor]:
    if not inputs["x"].is_contiguous():
        raise ValueError("contiguous inputs only")
    return honest(inputs)


def leaks(size: float) -> Runner:
    """Every sample gets a little of the mean over the batch."""

    def run(inputs: Inputs) -> dict[str, Tensor]:
        x, value = inputs["x"], honest(inputs)["output"]
        is_ordinary = bool((x.abs() < 10).all())  # the leak must not drown rows that are small
        return {"output": value + size * x.mean(0, keepdim=True) if is_ordinary else value}

    return run


@pytest.mark.parametrize(
    ("candidate", "message"),
    [
        (Drifting, "called twice with the same inputs, it differs: "),
        (Remembering, "called again after prime[batch=3,sequence=5], the same inputs give another answer: "),
        (OneBuffer, "a later call wrote into the tensor that an earlier one had returned: "),
        (Cached, "after the tensors that it had returned were written to, the same inputs give another answer: "),
        (lambda: blind_to(without_strides), "with strided inputs: introduced"),
        (lambda: blind_to(without_offset), "with inputs that start inside their storage: "),
        (lambda: blind_to(without_order), "with inputs in transposed memory order: error"),
        (lambda: blind_to(without_repeats), "with inputs whose rows are one row with stride 0: error"),
        (lambda: refuses_strides, "with strided inputs: it does not run: contiguous inputs only"),
        (Racing, "with 4 threads, two calls with the same inputs differ: "),
        (lambda: split_badly, "with 4 threads: error"),
        (lambda: leaks(0.01), "beside other samples, in traced[batch=4,sequence=6], the same samples give something"),
    ],
)
def test_each_way_to_misbehave_is_found(candidate: Callable[[], Runner], message: str) -> None:
    found = findings(candidate(), threads=(1, 4))
    assert {one.gate for one in found} == {"behaviour"}
    assert message in found[0].message
    assert all(one.case in {known.case.label for known in evidence().cases} for one in found)


@pytest.mark.parametrize("candidate", [Drifting, Remembering, OneBuffer, Cached, Racing])
def test_one_cause_gives_one_finding(candidate: Callable[[], Runner]) -> None:
    assert len(findings(candidate(), threads=(1, 4))) == 1


def test_a_leak_within_the_rounding_gate_is_a_note() -> None:
    assert findings(leaks(1e-8)) == []
    (note,) = (note for note in notes(leaks(1e-8)) if "batch-invariant" in note)
    assert note.startswith("part[batch=4,sequence=6]: not batch-invariant bit for bit: output: ")
    assert note.endswith("; within the rounding gate")


def test_other_bits_for_another_layout_are_a_note() -> None:
    def by_strides(inputs: Inputs) -> dict[str, Tensor]:
        off = 0.0 if inputs["x"].is_contiguous() else 1e-8
        return {name: value + off for name, value in honest(inputs).items()}

    assert findings(by_strides) == []
    assert any("with strided inputs, bits differ within the rounding gate" in note for note in notes(by_strides))


def test_the_original_itself_is_honest_and_costs_a_dozen_calls() -> None:
    candidate = Counting()
    assert [one for one in check_behaviour(evidence(), candidate) if isinstance(one, Finding)] == []
    assert candidate.calls <= 14


def assert_honest(name: str) -> None:
    model = ZOO[name]()
    original = capture(model.module, (), model.kwargs, dynamic=model.dynamic, dims=model.dims)
    known = collect_evidence(original, cases=quick_cases(original, 0)[::2])
    assert [one for one in check_behaviour(known, original.run_named) if isinstance(one, Finding)] == []


def test_a_model_of_the_zoo_is_honest() -> None:
    assert_honest("digits-vit")


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_every_model_of_the_zoo_is_honest(name: str) -> None:
    assert_honest(name)


def test_a_candidate_with_wrong_numbers_is_not_said_to_misbehave() -> None:
    assert findings(lambda inputs: {"output": honest(inputs)["output"] * 1.5}, threads=(1, 4)) == []


def test_an_onnx_artifact_is_honest_with_any_number_of_threads() -> None:
    model = built(lowering_models.attention)
    opened: list[int] = []

    def with_threads(count: int) -> Runner:
        opened.append(count)
        return open_session(model.folder / "model.onnx", threads=count).run

    known = collect_evidence(model.program)
    seen = check_behaviour(known, model.artifact.run_named, threads=(1, 3), with_threads=with_threads)
    assert [one for one in seen if isinstance(one, Finding)] == []
    assert opened == [1, 3]


def test_the_number_of_threads_is_as_before_even_when_the_candidate_fails() -> None:
    def fails_with_four(inputs: Inputs) -> dict[str, Tensor]:
        if torch.get_num_threads() == 4:
            raise KeyboardInterrupt
        return honest(inputs)

    before = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        findings(fails_with_four, threads=(4,))
    assert torch.get_num_threads() == before


class Handing(nn.Module):
    """Returns its input, a view of it, a stored tensor, views of one, and what it computed, once with stride 0."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(40, 4, generator=torch.Generator().manual_seed(1)))
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        stored = self.table, self.table[: x.shape[0]], self.table[:1].expand(x.shape[0], 4)
        return x, x[:, 0], *stored, self.linear(x), x.mean(0, keepdim=True).expand(x.shape[0], 4)


def test_a_model_that_hands_out_its_input_and_its_weights_is_honest_and_keeps_them() -> None:
    dims: dict[str, tuple[int, int | None]] = {"batch": (1, 32)}
    model = Handing().eval()
    table = model.table.detach().clone()
    original = capture(model, (torch.ones(6, 4),), dynamic={"x": {0: "batch"}}, dims=dims)
    seen = list(check_behaviour(collect_evidence(original), original.run_named))
    assert not any(isinstance(one, Finding) or "not checked" in one for one in seen)
    assert torch.equal(model.table, table)


def test_a_model_that_mixes_samples_itself_has_no_samples_to_compare() -> None:
    class Mixing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + x.mean(0, keepdim=True)

    original = capture(Mixing().eval(), (torch.ones(6, 4),), dynamic={"x": {0: "batch"}})
    whole = quick_cases(original, 0)[0]
    known = collect_evidence(original, cases=(whole, part_of(whole, (3,))))
    seen = list(check_behaviour(known, original.run_named))
    assert not any(isinstance(one, Finding) or "batch-invariant" in one for one in seen)


def test_what_is_written_into_an_answer_is_undone() -> None:
    candidate = Cached()
    findings(candidate)
    (first, *_) = candidate.cache.values()
    assert bool(torch.isfinite(first["output"]).all())


def test_one_tensor_for_two_equal_inputs() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x.sin() + y

    original = capture(Two().eval(), (torch.ones(3, 4), torch.ones(3, 4)))
    case = case_of(original, "traced", {}, normal, 0)
    known = collect_evidence(original, cases=[replace(case, inputs={"x": case.inputs["x"], "y": case.inputs["x"]})])

    def in_place(inputs: Inputs) -> dict[str, Tensor]:
        negative = inputs["y"].neg_()
        value = inputs["x"].sin() - negative
        inputs["y"].neg_()
        return {"output": value}

    assert list(check_behaviour(known, original.run_named)) == []
    assert "with one tensor for x and y" in str(list(check_behaviour(known, in_place)))


def test_a_candidate_that_does_not_run_is_said_not_to_be_checked() -> None:
    def fails(inputs: Inputs) -> dict[str, Tensor]:
        raise OSError("no such kernel")

    assert list(check_behaviour(evidence(), fails)) == [
        "traced[batch=4,sequence=6]: its behaviour was not checked: it does not run: no such kernel"
    ]


def test_cases_that_replace_a_node_are_passed_over() -> None:
    case = replace(quick_cases(program(), 0)[0], overrides={"sin": torch.zeros(4, 6, 8)})
    candidate = Counting()
    assert list(check_behaviour(collect_evidence(program(), cases=[case]), candidate)) == []
    assert candidate.calls == 0
