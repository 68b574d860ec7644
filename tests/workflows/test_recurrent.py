"""A causal model is lowered as a step, proved against the whole, and streamed."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

import flowopt
from flowopt.cli.parsing import parse_dynamic
from flowopt.errors import UserError
from flowopt.recurrence.step_program import StepProgram, step_program
from flowopt.report.verdict import Outcome
from flowopt.runtime.artifact import Artifact
from flowopt.verification.levels import LEVELS
from flowopt.workflows import recurrent as module
from flowopt.workflows.optimize import OptimizeResult, optimize
from flowopt.workflows.recurrent import recurrent
from flowopt.workflows.verify import verify
from tests.passes.fold.state_spaces import inputs, layer
from tests.recurrence.causal_models import VOCABULARY, decoder, on_tokens

IDS = torch.randint(0, VOCABULARY, (2, 13), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def lowered(tmp_path_factory: pytest.TempPathFactory) -> OptimizeResult:
    return optimize(decoder("hedgehog"), form="recurrent", folder=tmp_path_factory.mktemp("step") / "out")


def opened(lowered: OptimizeResult) -> Artifact:
    assert lowered.artifact is not None
    return lowered.artifact


def test_the_step_is_verified_and_so_is_its_file(lowered: OptimizeResult) -> None:
    assert lowered.report.outcome == "verified"
    assert lowered.report.recurrence is not None
    assert lowered.report.recurrence.verdict is not None
    assert lowered.report.recurrence.verdict.outcome is Outcome.EQUIVALENT


def test_a_stream_gives_what_the_model_gives_on_the_whole(lowered: OptimizeResult) -> None:
    found = opened(lowered).stream(batch=2).run(ids=IDS)
    expected = decoder("hedgehog").run(IDS)
    torch.testing.assert_close(found["output"], expected, rtol=1e-5, atol=1e-5)


def test_a_stream_goes_on_from_states_that_were_kept(lowered: OptimizeResult) -> None:
    stream = opened(lowered).stream(batch=2)
    whole = stream.run(ids=IDS)["output"]
    stream.reset()
    stream.run(ids=IDS[:, :8])
    other = opened(lowered).stream(batch=2)
    other.reset(stream.states)
    assert torch.equal(other.run(ids=IDS[:, 8:])["output"], whole[:, 8:])


def test_a_stream_asks_for_the_size_of_what_it_carries(lowered: OptimizeResult) -> None:
    with pytest.raises(UserError, match="how large is 'batch'"):
        opened(lowered).stream()


def test_a_stream_refuses_states_that_it_has_not(lowered: OptimizeResult) -> None:
    with pytest.raises(UserError, match="no state 'memory'"):
        opened(lowered).stream(batch=1).reset({"memory": torch.zeros(1)})


LONGEST = 64
NO_MORE = f"the model takes no more than {LONGEST} tokens"


def test_a_stream_goes_no_farther_than_the_longest_sequence(lowered: OptimizeResult) -> None:
    stream = opened(lowered).stream(batch=1)
    one = IDS[:1, :1]
    stream.run(ids=one.expand(1, LONGEST - 1))
    with pytest.raises(UserError, match=NO_MORE):
        stream.run(ids=one.expand(1, 2))
    stream.step(ids=one)
    with pytest.raises(UserError, match=NO_MORE) as caught:
        stream.step(ids=one)
    assert caught.value.hint == "stream.reset()"
    other = opened(lowered).stream(batch=1)
    other.reset(stream.states)
    with pytest.raises(UserError, match=NO_MORE):
        other.step(ids=one)
    stream.reset()
    stream.step(ids=one)


def test_tokens_are_counted_where_no_state_does(tmp_path: Path) -> None:
    made = optimize(on_tokens(summed), form="recurrent", folder=tmp_path / "out", verify="off")
    assert made.report.recurrence is not None and made.report.recurrence.longest == LONGEST
    stream = opened(made).stream(batch=1)
    stream.run(x=torch.ones(1, LONGEST, 8))
    with pytest.raises(UserError, match=NO_MORE):
        stream.step(x=torch.ones(1, 1, 8))


STEPS: dict[str, tuple[dict[str, object], str]] = {
    "unknown": ({"ids": IDS[:, :1], "mask": IDS[:, :1]}, "unknown: mask"),
    "missing": ({}, "missing inputs: ids"),
    "a-state": ({"ids": IDS[:, :1], "state_0": IDS}, "'state_0' is a state"),
    "two-tokens": ({"ids": IDS[:, :2]}, "step takes one token; run takes whole sequences"),
    "another-batch": ({"ids": IDS[:1, :1]}, "'batch' is 1 in 'ids', and 2 in this stream"),
    "another-rank": ({"ids": IDS[0]}, "its tokens are on axis 1"),
    "another-dtype": ({"ids": IDS[:, :1].float()}, r"input 'ids' is float32\[2, 1\]"),
    "numpy": ({"ids": IDS[:, :1].numpy()}, "input 'ids' is ndarray, not a torch tensor"),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_stream_refuses_inputs_that_do_not_fit(lowered: OptimizeResult, name: str) -> None:
    inputs, message = STEPS[name]
    stream = opened(lowered).stream(batch=2)
    before = stream.states
    with pytest.raises(UserError, match=message) as caught:
        stream.step(**inputs)  # type: ignore[arg-type]  # that is the test
    assert str(caught.value)
    assert all(torch.equal(value, stream.states[key]) for key, value in before.items())


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "no input with tokens is given"),
        ({"ids": IDS[:, :0]}, "'ids' has no tokens"),
        ({"ids": IDS, "mask": IDS[:, :1]}, "unknown: mask"),
        ({"ids": IDS.numpy()}, "not a torch tensor"),
    ],
)
def test_a_stream_refuses_to_run_without_tokens(
    lowered: OptimizeResult, inputs: dict[str, Tensor], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        opened(lowered).stream(batch=2).run(**inputs)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"batch": 2, "heads": 2}, "no free size 'heads'"),
        ({"batch": 0}, "batch=0 is no size"),
        ({"batch": 9}, "batch=9 is no size"),
    ],
)
def test_a_stream_refuses_sizes_that_it_has_not(lowered: OptimizeResult, sizes: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        opened(lowered).stream(**sizes)


def test_a_stream_refuses_states_of_other_shapes_and_keeps_its_own(lowered: OptimizeResult) -> None:
    stream, other = opened(lowered).stream(batch=2), opened(lowered).stream(batch=1)
    stream.run(ids=IDS)
    before = stream.states
    with pytest.raises(UserError, match=r"state 'state_\d+' is float32\[1, .*not float32\[2,"):
        stream.reset(other.states)
    with pytest.raises(UserError, match="is ndarray, not a torch tensor"):
        stream.reset({name: value.numpy() for name, value in before.items()})  # type: ignore[misc]  # that is the test
    assert all(torch.equal(value, stream.states[key]) for key, value in before.items())


def test_verify_runs_a_step_on_whole_sequences(lowered: OptimizeResult) -> None:
    assert verify(decoder("hedgehog"), opened(lowered)).outcome is Outcome.EQUIVALENT
    assert verify(decoder("elu"), opened(lowered)).outcome is Outcome.DIFFERENT


def test_an_artifact_of_whole_sequences_has_no_stream(tmp_path: Path) -> None:
    made = optimize(on_tokens(torch.tanh), folder=tmp_path / "out", verify="off")
    assert made.artifact is not None
    with pytest.raises(UserError, match="is no step"):
        made.artifact.stream(batch=1)


def forgetful(program: object, sequence: str) -> StepProgram:
    """A step that halves what it carries in the first place."""
    made = step_program(program, sequence)  # type: ignore[arg-type]  # a program
    (output,) = made.program.graph.find_nodes(op="output")
    found, *states = output.args[0]
    with made.program.graph.inserting_before(output):
        half = made.program.graph.call_function(torch.ops.aten.mul.Scalar, (states[0], 0.5))
    half.meta = dict(states[0].meta)
    output.args = ((found, half, *states[1:]),)
    return made


def summed(x: Tensor) -> Tensor:
    return x.cumsum(1)


def test_a_step_that_forgets_is_different_and_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "step_program", forgetful)
    made = optimize(on_tokens(summed), form="recurrent", sequence="sequence", folder=tmp_path / "out")
    assert made.verdict.outcome is Outcome.DIFFERENT
    assert made.artifact is None
    assert not (tmp_path / "out").exists()


def test_the_example_of_a_state_is_what_the_first_tokens_leave() -> None:
    made = recurrent(on_tokens(summed), verify=False)
    (state,) = made.recurrence.states
    assert float(made.program.example[state.input].abs().max()) > 0


def test_values_that_are_not_numbers_ahead_are_not_seen() -> None:
    made = recurrent(on_tokens(summed))
    assert made.recurrence.verdict is not None
    assert made.recurrence.verdict.outcome is Outcome.EQUIVALENT


def test_values_that_are_not_numbers_ahead_are_not_seen_behind_a_transform() -> None:
    # Which leaves none of the channel's tokens a number, in float64 as in float32.
    free = {"u": {0: "batch", 2: "length"}}
    program = flowopt.capture(layer(), (inputs(12),), dynamic=free, dims={"length": (1, 50)})
    verdict = recurrent(program).recurrence.verdict
    assert verdict is not None and verdict.outcome is Outcome.EQUIVALENT
    assert any(note.startswith("special") and "is not judged where" in note for note in verdict.notes)


def test_a_model_that_carries_nothing_is_no_step() -> None:
    with pytest.raises(UserError, match="carries nothing from token to token") as caught:
        recurrent(on_tokens(torch.tanh), verify=False)
    assert caught.value.hint is not None
    _, given = caught.value.hint.split(": ", 1)
    assert parse_dynamic(given.split()[1::2]).dynamic == {"ids": {0: "batch", 1: "sequence"}}


def test_what_keeps_a_model_from_being_a_step_is_named() -> None:
    with pytest.raises(UserError, match="flip"):
        recurrent(on_tokens(backwards), verify=False)


def backwards(x: Tensor) -> Tensor:
    return x.flip(1).cumsum(1)


def test_each_dimension_that_was_tried_is_named_with_its_reason() -> None:
    with pytest.raises(UserError) as caught:
        recurrent(on_tokens(backwards), verify=False)
    assert "along batch: nothing is carried along it" in caught.value.message
    assert "along sequence: flip" in caught.value.message


def test_why_a_convolution_is_no_state_space_is_told() -> None:
    def filtered(x: Tensor) -> Tensor:
        length = x.shape[1]
        taps = torch.cos(torch.arange(length, dtype=x.dtype) ** 2)
        spectrum = torch.fft.rfft(x.transpose(1, 2), n=2 * length) * torch.fft.rfft(taps.expand(8, -1), n=2 * length)
        return torch.fft.irfft(spectrum, n=2 * length)[..., :length].transpose(1, 2)

    with pytest.raises(UserError, match="no state space that fold-ssm-kernel knows: .* no sum of powers"):
        recurrent(on_tokens(filtered), sequence="sequence", verify=False)


def test_the_proof_sees_what_happens_far_apart() -> None:
    verdict = recurrent(on_tokens(summed)).recurrence.verdict
    assert verdict is not None
    assert "many-tokens[batch=1,sequence=64]" in verdict.cases


def late(program: object, sequence: str) -> StepProgram:
    """A step that forgets what it carries at its fiftieth token."""
    made = step_program(program, sequence)  # type: ignore[arg-type]  # a program
    (output,) = made.program.graph.find_nodes(op="output")
    found, *states = output.args[0]
    at = next(place for place, state in enumerate(states) if state.meta["val"].dtype is torch.int64)
    kept = next(place for place in range(len(states)) if place != at)
    with made.program.graph.inserting_before(output):
        early = made.program.graph.call_function(torch.ops.aten.lt.Scalar, (states[at], 50))
        early.meta = {"val": states[at].meta["val"].to(torch.bool)}
        left = made.program.graph.call_function(torch.ops.aten.mul.Tensor, (states[kept], early))
    left.meta = dict(states[kept].meta)
    states[kept] = left
    output.args = ((found, *states),)
    return made


def averaged(x: Tensor) -> Tensor:
    return x.cumsum(1) / torch.arange(1, x.shape[1] + 1, dtype=x.dtype)[:, None]


def test_a_step_that_forgets_late_is_different(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "step_program", late)
    verdict = recurrent(on_tokens(averaged), sequence="sequence").recurrence.verdict
    assert verdict is not None and verdict.outcome is Outcome.DIFFERENT


@pytest.mark.slow
def test_the_proof_follows_the_level() -> None:
    quick, full = (recurrent(on_tokens(summed), level=level).recurrence.verdict for level in LEVELS)
    assert quick is not None and full is not None
    assert full.level == "full" and full.outcome is Outcome.EQUIVALENT
    assert len(full.cases) > len(quick.cases)


def test_the_proof_follows_the_budget() -> None:
    verdict = recurrent(on_tokens(summed), case_budget=1e-12).recurrence.verdict
    assert verdict is not None and verdict.outcome is Outcome.INCONCLUSIVE
    assert any("--case-budget" in note for note in verdict.notes)


def finite(program: object, sequence: str) -> StepProgram:
    """A step whose output holds no infinity."""
    made = step_program(program, sequence)  # type: ignore[arg-type]  # a program
    (output,) = made.program.graph.find_nodes(op="output")
    found, *states = output.args[0]
    with made.program.graph.inserting_before(output):
        clean = made.program.graph.call_function(torch.ops.aten.nan_to_num.default, (found,))
    clean.meta = dict(found.meta)
    output.args = ((clean, *states),)
    return made


def endless(x: Tensor) -> Tensor:
    return x.cumsum(1) / 0.0


def test_a_step_that_swallows_infinities_of_its_own_is_different(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "step_program", finite)
    verdict = recurrent(on_tokens(endless)).recurrence.verdict
    assert verdict is not None and verdict.outcome is Outcome.DIFFERENT


def test_a_sequence_belongs_to_a_step(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="belongs to a step"):
        optimize(on_tokens(summed), sequence="sequence", folder=tmp_path / "out")
    with pytest.raises(UserError, match="must be parallel or recurrent"):
        optimize(on_tokens(summed), form="loop", folder=tmp_path / "out")  # type: ignore[arg-type]  # that is the test


def test_the_report_keeps_its_recurrence(lowered: OptimizeResult) -> None:
    again = Artifact.open(opened(lowered).folder).recurrence
    assert again is not None
    assert lowered.report.recurrence is not None
    assert again == dataclasses.replace(lowered.report.recurrence, verdict=None)
