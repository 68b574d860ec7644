"""What computes tokens one by one is known; what needs others is refused, and the refusal says why."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from flowopt.errors import UserError
from flowopt.ops.ssm.s4d import S4D
from flowopt.program.capture import capture
from flowopt.recurrence.step_program import step_program
from tests.recurrence.causal_models import Decoder, of_ids, on_tokens
from tests.recurrence.step_difference import EXACT, difference

F = nn.functional


class Gated(nn.Module):
    """The block of an official S4D, over channels in the middle."""

    def __init__(self, body: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.mix = body, nn.Conv1d(8, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.glu(self.mix(self.body(x.transpose(1, 2))), 1).transpose(1, 2)


def along_features(x: Tensor) -> Tensor:
    return x.cumsum(-1) + x.prod(-1, keepdim=True) + x.std(-1, keepdim=True) + x.var(-1).unsqueeze(-1)


def greatest(x: Tensor) -> Tensor:
    return x.cumsum(1) * x.argmax(-1, keepdim=True) + x.logsumexp(-1, keepdim=True)


@pytest.mark.parametrize("body", [Gated(torch.tanh), Gated(S4D(8, 16)), along_features, greatest])
def test_operators_on_features_alone(body: Callable[[Tensor], Tensor]) -> None:
    assert difference(on_tokens(body), 2, 7) <= EXACT


def gated_along_tokens(x: Tensor) -> Tensor:
    return F.glu(torch.cat([x, x], 1), 1)


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv1d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x.transpose(1, 2)).transpose(1, 2)


def sorted_features(x: Tensor) -> Tensor:
    return x.sort(-1).values


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (gated_along_tokens, "it is not known to work on tokens one by one"),
        (sorted_features, "it is not known to work on tokens one by one"),
        (Wide(), "it mixes tokens"),
    ],
)
def test_a_refusal_says_no_more_than_is_known(body: Callable[[Tensor], Tensor], why: str) -> None:
    with pytest.raises(UserError, match=why):
        step_program(on_tokens(body), "sequence")


class Paired(nn.Module):
    def forward(self, x: Tensor, pairs: Tensor) -> Tensor:
        return x.cumsum(1)


def test_refuses_an_input_of_all_pairs_even_when_nobody_reads_it() -> None:
    free = {"x": {1: "sequence"}, "pairs": {0: "sequence", 1: "sequence"}}
    program = capture(
        Paired().eval(), (torch.randn(2, 9, 8), torch.ones(9, 9)), dynamic=free, dims={"sequence": (1, 64)}
    )
    with pytest.raises(UserError, match="2 axes of 'sequence'"):
        step_program(program, "sequence")


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


def softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


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
