"""A step, token by token, is the causal model on whole sequences; what is not causal or carries more is refused."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from flowopt.errors import UserError
from flowopt.ops.ssm.s4d import S4D
from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.recurrence.step_program import StepProgram, step_program
from flowopt.runtime.stream import Stream
from tests.recurrence.causal_models import VOCABULARY, Decoder, OnTokens, canonical, decoder, of_ids, on_tokens

F = nn.functional
EXACT = 1e-10


def difference(program: Program, batch: int, length: int) -> float:
    """Largest difference in float64 between the step, token by token, and the model."""
    made = step_program(program, "sequence")
    generator = torch.Generator().manual_seed(length)
    (name,) = (i.name for i in program.inputs)
    if name == "ids":
        given = torch.randint(0, VOCABULARY, (batch, length), generator=generator)
    else:
        given = torch.randn(batch, length, 8, generator=generator, dtype=torch.float64)
    whole = program.raised_copy()
    step = step_program(whole, "sequence").program
    wanted = whole.run_named({name: given})
    stream = Stream(step.run_named, made.recurrence, {"batch": batch}, dtype=torch.float64)
    found = stream.run(**{name: given})
    return max(float((found[key] - wanted[key]).abs().max()) for key in wanted)


@pytest.mark.parametrize("length", [1, 7])
@pytest.mark.parametrize("name", ["elu", "favor", "cosformer", "hedgehog", "t2r", "flow", "mean"])
def test_linear_attention_goes_token_by_token(name: str, length: int) -> None:
    assert difference(decoder(name), 2, length) <= EXACT


def masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    at = torch.arange(q.shape[2])
    visible = at[:, None] >= at
    return torch.where(visible, q @ k.transpose(-1, -2), 0.0) @ v


def multiplied(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    triangle = torch.ones(q.shape[2], q.shape[2]).tril().to(q.dtype)
    return (0.5 * (q @ k.transpose(-1, -2)) * triangle / 3.0) @ v


def normalised(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = (F.elu(q) + 1) @ (F.elu(k) + 1).transpose(-1, -2)
    weights = scores.tril()
    return weights @ v / weights.sum(-1, keepdim=True)


@pytest.mark.parametrize("attend", [masked, multiplied, normalised])
def test_products_that_are_written_out_in_other_ways(attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    assert difference(of_ids(Decoder(attend)), 2, 11) <= EXACT


class Stored(nn.Module):
    triangle: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("triangle", torch.ones(80, 80).tril())

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        tokens = q.shape[2]
        return (q @ k.transpose(-1, -2) * self.triangle[:tokens, :tokens]) @ v


def test_a_stored_triangle_is_one_at_its_full_length() -> None:
    assert difference(of_ids(Decoder(Stored())), 2, 11) <= EXACT


def within(width: int) -> Callable[[Tensor], Tensor]:
    def attended(x: Tensor) -> Tensor:
        at = torch.arange(x.shape[1])
        apart = at[:, None] - at
        return torch.where((apart >= 0) & (apart < width), x @ x.transpose(-1, -2), 0.0) @ x

    return attended


def causal(x: Tensor) -> Tensor:
    return (x @ x.transpose(-1, -2)).tril() @ x


def masked_tokens(x: Tensor) -> Tensor:
    at = torch.arange(x.shape[1])
    return torch.where(at[:, None] >= at, x @ x.transpose(-1, -2), 0.0) @ x


@pytest.mark.parametrize("width", [4000, 5000])
def test_refuses_windows_of_a_length_without_a_largest(width: int) -> None:
    with pytest.raises(UserError, match="cannot go token by token"):
        step_program(unbounded(within(width)), "sequence")


@pytest.mark.parametrize("body", [causal, masked_tokens])
def test_a_length_needs_no_largest(body: Callable[[Tensor], Tensor]) -> None:
    assert step_program(unbounded(body), "sequence").recurrence.states


def unbounded(body: Callable[[Tensor], Tensor]) -> Program:
    given = (torch.randn(2, 9, 8),)
    return canonical(capture(OnTokens(body).eval(), given, dynamic={"x": {1: "sequence"}}))


class Raised(nn.Module):
    """Scores in float32 in a model of half precision."""

    def __init__(self, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.packed = nn.Linear(8, 24)
        self.attend = attend

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.packed(x).chunk(3, -1)
        return self.attend(q, k, v)


def in_float32(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-1, -2)).float().tril() @ v.float()


def in_float32_and_back(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-1, -2)).float().tril().to(v.dtype) @ v


def weights_in_float32(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-1, -2)).tril().sum(-1, keepdim=True, dtype=torch.float32) * v


@pytest.mark.parametrize("attend", [in_float32, in_float32_and_back, weights_in_float32])
def test_casts_inside_a_sum_are_kept(attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    given = torch.randn(2, 9, 8, generator=torch.Generator().manual_seed(5)).half()
    program = canonical(
        capture(Raised(attend).half().eval(), (given,), dynamic={"x": {1: "sequence"}}, dims={"sequence": (1, 64)})
    )
    made = step_program(program, "sequence")
    found = Stream(made.program.run_named, made.recurrence, {}).run(x=given)
    expected = program.run_named({"x": given})
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-2, atol=1e-2)
    assert {state.dtype for state in made.recurrence.states} == {"float32"}


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


def unbounded_spaces(body: nn.Module) -> Program:
    dynamic = {"x": {0: "batch", 1: "sequence"}}
    return capture(body.eval(), (torch.randn(3, 9, 8),), dynamic=dynamic)


def test_a_state_space_needs_no_longest_sequence() -> None:
    torch.manual_seed(5)
    assert difference(unbounded_spaces(Convolved()), 2, 40) <= EXACT


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
        step_program(unbounded_spaces(Cut(end)), "sequence")


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


def softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def to_all(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-1, -2)) @ v


def strictly_before(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-1, -2)).tril(-1) @ v


def ahead(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ((q @ k.transpose(-1, -2)) * torch.ones(q.shape[2], q.shape[2]).triu()) @ v


def windowed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    at = torch.arange(q.shape[2])
    apart = at[:, None] - at
    return torch.where((apart >= 0) & (apart < 16), q @ k.transpose(-1, -2), 0.0) @ v


class Banded(nn.Module):
    band: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("band", torch.ones(80, 80).tril().triu(-15))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        tokens = q.shape[2]
        return (q @ k.transpose(-1, -2) * self.band[:tokens, :tokens]) @ v


def without_features(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-1, -2)).to(torch.int64).tril().to(q.dtype) @ v


@pytest.mark.parametrize("attend", [softmax, to_all, strictly_before, ahead, windowed, Banded(), without_features])
def test_refuses_attention_that_no_sum_carries(attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    with pytest.raises(UserError, match="cannot go token by token"):
        step_program(of_ids(Decoder(attend)), "sequence")


def of_the_length(x: Tensor) -> Tensor:
    return x / x.shape[1]


def centred(x: Tensor) -> Tensor:
    return x - x.mean(1, keepdim=True)


def reversed_sum(x: Tensor) -> Tensor:
    return x.flip(1).cumsum(1)


def of_what_follows(x: Tensor) -> Tensor:
    return F.pad(x, (0, 0, -1, 1))


def filled_with_the_length(x: Tensor) -> Tensor:
    return x + torch.full((1, x.shape[1], 1), 1.0 / x.shape[1])


def filled_for_pairs(x: Tensor) -> Tensor:
    return x + torch.ones(x.shape[1], x.shape[1]).sum(1)[:, None]


def spread_over_pairs(x: Tensor) -> Tensor:
    return x + x[..., :1].expand(-1, -1, x.shape[1]).sum(-1, keepdim=True)


@pytest.mark.parametrize(
    "body",
    [
        *(of_the_length, centred, reversed_sum, of_what_follows),
        *(filled_with_the_length, filled_for_pairs, spread_over_pairs),
    ],
)
def test_refuses_what_knows_of_other_tokens(body: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(UserError, match="cannot go token by token"):
        step_program(on_tokens(body), "sequence")


def test_the_refusal_of_softmax_says_why_and_where() -> None:
    with pytest.raises(UserError) as caught:
        step_program(of_ids(Decoder(softmax)), "sequence")
    assert "softmax attention" in caught.value.message
    assert "causal_models.py" in caught.value.why


def test_refuses_an_output_of_the_whole_sequence() -> None:
    one = capture(Pooled().eval(), (torch.randn(3, 9, 8),), dynamic={"x": {1: "sequence"}}, dims={"sequence": (1, 64)})
    with pytest.raises(UserError, match="0 axes of 'sequence'"):
        step_program(one, "sequence")


class Pooled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


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
