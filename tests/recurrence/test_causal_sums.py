"""Products over all pairs of tokens up to one are found however they are written out, and others are refused."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from flowopt.errors import UserError
from flowopt.program.capture import capture
from flowopt.recurrence.step_program import step_program
from flowopt.runtime.stream import Stream
from tests.recurrence.causal_models import Decoder, canonical, of_ids, unbounded
from tests.recurrence.step_difference import EXACT, difference
from tests.verification.substitute import Model

F = nn.functional


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
        step_program(canonical(unbounded(Model(within(width)))), "sequence")


@pytest.mark.parametrize("body", [causal, masked_tokens])
def test_a_length_needs_no_largest(body: Callable[[Tensor], Tensor]) -> None:
    assert step_program(canonical(unbounded(Model(body))), "sequence").recurrence.states


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


def rounded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-1, -2)).to(torch.int64).tril().to(q.dtype) @ v


def softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


@pytest.mark.parametrize("attend", [softmax, to_all, strictly_before, ahead, windowed, Banded(), rounded])
def test_refuses_attention_that_no_sum_carries(attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    with pytest.raises(UserError, match="cannot go token by token"):
        step_program(of_ids(Decoder(attend)), "sequence")
