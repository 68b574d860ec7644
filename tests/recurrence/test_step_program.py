"""A step, token by token, is the causal model on whole sequences; what is not causal or carries more is refused."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from flowopt.errors import UserError
from flowopt.ops.ssm.s4d import S4D
from flowopt.program.capture import capture
from flowopt.recurrence.step_program import StepProgram, step_program
from flowopt.runtime.stream import Stream
from tests.recurrence.causal_models import VOCABULARY, canonical, decoder, on_tokens, unbounded
from tests.recurrence.step_difference import EXACT, difference

F = nn.functional


@pytest.mark.parametrize("length", [1, 7])
@pytest.mark.parametrize("name", ["elu", "favor", "cosformer", "hedgehog", "t2r", "flow", "mean"])
def test_linear_attention_goes_token_by_token(name: str, length: int) -> None:
    assert difference(decoder(name), 2, length) <= EXACT


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_counts_go_on_where_half_precision_cannot_add_one(dtype: torch.dtype) -> None:
    given = torch.ones(1, 3000, 1, dtype=dtype)
    program = canonical(
        capture(Summed().eval(), (given[:, :9],), dynamic={"x": {1: "sequence"}}, dims={"sequence": (1, 4096)})
    )
    made = step_program(program, "sequence")
    found = Stream(made.program.run_named, made.recurrence, {}).run(x=given)
    assert torch.equal(found["output"], program.run_named({"x": given})["output"])
    assert [state.dtype for state in made.recurrence.states] == ["float32"]


class Summed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(1)


def running(x: Tensor) -> Tensor:
    return x.cumsum(1) / torch.arange(1, x.shape[1] + 1, dtype=x.dtype)[:, None]


def shifted(x: Tensor) -> Tensor:
    return x + F.pad(x, (0, 0, 1, -1))


def delayed(x: Tensor) -> Tensor:
    return x * F.pad(x, (0, 0, 3, -3))


def every_other(x: Tensor) -> Tensor:
    return x * torch.arange(3, 3 + 2 * x.shape[1], 2, dtype=x.dtype)[:, None]


def counted(x: Tensor) -> Tensor:
    return x.cumsum(1) / torch.ones(x.shape[0], x.shape[1], 1, dtype=x.dtype).cumsum(1)


class Ignoring(nn.Module):
    """Of its second input no value is read, nor of its third, whose size is."""

    def forward(self, x: Tensor, mask: Tensor, like: Tensor) -> Tensor:
        return x.cumsum(1) + torch.arange(like.shape[1])[:, None]


def test_inputs_that_nobody_reads_are_given_token_by_token_too() -> None:
    given = {"x": torch.randn(2, 9, 8), "mask": torch.ones(2, 9), "like": torch.ones(2, 9)}
    free = {name: {1: "sequence"} for name in given}
    program = capture(Ignoring().eval(), tuple(given.values()), dynamic=free, dims={"sequence": (1, 64)})
    made = step_program(program, "sequence")
    assert made.recurrence.token_axes == {"x": 1, "mask": 1, "like": 1, "output": 1}
    found = Stream(made.program.run_named, made.recurrence, {}).run(**given)
    torch.testing.assert_close(found["output"], program.run_named(given)["output"])


@pytest.mark.parametrize("body", [running, shifted, delayed, every_other, counted, torch.tanh])
@pytest.mark.parametrize("length", [4, 7])  # the whole model takes no fewer tokens than the longest delay
def test_sums_delays_and_positions(body: Callable[[Tensor], Tensor], length: int) -> None:
    assert difference(on_tokens(body), 2, length) <= EXACT


class Positions(nn.Module):
    """Positions by a lookup of a counter, and beside them a label of the whole sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, 8), nn.Embedding(66, 8)
        self.labels = nn.Embedding(4, 8)

    def forward(self, ids: Tensor, label: Tensor) -> Tensor:
        at = torch.arange(2, 2 + ids.shape[1])
        x: Tensor = self.tokens(ids) + self.positions(at)[None] + self.labels(label)[:, None]
        return x.cumsum(1)


def test_positions_that_are_looked_up_and_inputs_without_tokens() -> None:
    program = capture(
        Positions().eval(),
        (torch.randint(0, VOCABULARY, (3, 9)), torch.randint(0, 4, (3,))),
        dynamic={"ids": {0: "batch", 1: "sequence"}, "label": {0: "batch"}},
        dims={"batch": (1, 8), "sequence": (1, 64)},
    )
    made = step_program(program, "sequence")
    ids, label = torch.randint(0, VOCABULARY, (2, 5)), torch.tensor([3, 1])
    found = Stream(made.program.run_named, made.recurrence, {"batch": 2}).run(ids=ids, label=label)
    torch.testing.assert_close(found["output"], program.run(ids, label))


@pytest.mark.parametrize("length", [1, 2, 40])
def test_state_spaces_carry_their_states_in_real_numbers(length: int) -> None:
    program = on_tokens(Convolved())
    assert difference(program, 2, length) <= EXACT
    shapes = [state.shape for state in step_program(program, "sequence").recurrence.states]
    assert shapes == [("batch", 8, 8), ("batch", 8, 8)]


def test_a_state_space_needs_no_longest_sequence() -> None:
    torch.manual_seed(5)
    assert difference(unbounded(Convolved()), 2, 40) <= EXACT


class Cut(nn.Module):
    """A state space whose kernel ends somewhere."""

    def __init__(self, end: int) -> None:
        super().__init__()
        self.poles, self.end = nn.Parameter(torch.randn(8, 4)), end

    def forward(self, x: Tensor) -> Tensor:
        at = torch.arange(x.shape[1])
        poles = torch.complex(-self.poles.abs() / 100, self.poles)
        kernel = (poles[..., None] * at).exp().sum(1).real * (at < self.end)
        u, n = x.transpose(1, 2), 2 * x.shape[1]
        y = torch.fft.irfft(torch.fft.rfft(u, n=n) * torch.fft.rfft(kernel, n=n), n=n)
        return y[..., : x.shape[1]].transpose(1, 2)


@pytest.mark.parametrize("end", [64, 4000, 100000])
def test_refuses_a_state_space_that_ends(end: int) -> None:
    with pytest.raises(UserError, match="cannot go token by token"):
        step_program(unbounded(Cut(end)), "sequence")


class Convolved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = S4D(8, 16)

    def forward(self, x: Tensor) -> Tensor:
        convolved: Tensor = self.layer(x.transpose(1, 2))
        return torch.tanh(convolved).transpose(1, 2)


def made() -> StepProgram:
    return step_program(decoder("elu"), "sequence")


def test_states_are_inputs_and_outputs_with_the_sizes_of_the_features() -> None:
    states = made().recurrence.states
    assert {state.shape for state in states} == {(1,), ("batch", 2, 8, 8), ("batch", 2, 1, 8)}
    names = {i.name for i in made().program.inputs}, {o.name for o in made().program.outputs}
    assert all(state.input in names[0] and state.output in names[1] for state in states)


def test_a_step_has_one_token_and_no_free_length() -> None:
    assert made().program.shape("ids") == ("batch", 1)
    assert [d.name for d in made().program.dims] == ["batch"]
    assert made().recurrence.token_axes == {"ids": 1, "output": 1}


def test_the_model_stays_as_it_was() -> None:
    program = decoder("elu")
    before = [n.format_node() for n in program.graph.nodes]
    shapes = [str(n.meta.get("val")) for n in program.graph.nodes]
    step_program(program, "sequence")
    assert [n.format_node() for n in program.graph.nodes] == before
    assert [str(n.meta.get("val")) for n in program.graph.nodes] == shapes
    assert [d.name for d in program.dims] == ["batch", "sequence"]


def test_refuses_a_dimension_that_is_not_free() -> None:
    with pytest.raises(UserError, match="no free dimension 'tokens'") as caught:
        step_program(decoder("elu"), "tokens")
    assert "batch, sequence" in (caught.value.hint or "")


class Counting(nn.Module):
    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return x.cumsum(1) + self.calls


def test_refuses_a_model_with_state_of_its_own() -> None:
    program = capture(
        Counting().eval(), (torch.randn(3, 9, 8),), dynamic={"x": {1: "sequence"}}, dims={"sequence": (1, 64)}
    )
    with pytest.raises(UserError, match="state of its own"):
        step_program(program, "sequence")
