"""Which input marks padding, and which way round."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flowopt
from flowopt.errors import UserError
from flowopt.program.program import Program
from flowopt.recovery.padding import input_of, real_tokens
from flowopt.workflows.adapting.judged import padding_input


class _Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(50, 8), nn.Linear(8, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        hidden = self.table(ids) * (mask != 0).unsqueeze(-1)
        tagged: Tensor = self.head(hidden)
        return tagged


def _program(mask: Tensor, name: str) -> Program:
    class Named(_Tagger):
        pass

    # The input's name is that of forward's argument.
    made: dict[str, Any] = {}
    exec(f"def forward(self, ids, {name}): return _Tagger.forward(self, ids, {name})", globals(), made)
    Named.forward = made["forward"]  # type: ignore[method-assign]  # that is what it is for
    return flowopt.capture(Named().eval(), (torch.arange(6).reshape(2, 3), mask))


ONES = torch.tensor([[1, 1, 0], [1, 0, 0]])


def test_an_attention_mask_of_integers_is_found() -> None:
    assert padding_input(_program(ONES, "attention_mask"), "auto") == "attention_mask"


@pytest.mark.parametrize(
    ("mask", "name"), [(ONES.bool(), "key_padding_mask"), (ONES.bool(), "attention_mask"), (ONES, "padding_mask")]
)
def test_a_mask_that_may_mean_either_is_asked_about(mask: Tensor, name: str) -> None:
    with pytest.raises(UserError, match="not whether by ones or by zeros") as raised:
        padding_input(_program(mask, name), "auto")
    assert f"--padding not:{name}" in raised.value.hint


def test_numbers_that_are_added_to_scores_are_no_mask() -> None:
    assert padding_input(_program(torch.zeros(2, 3), "attention_mask"), "auto") is None


@pytest.mark.parametrize("wanted", ["key_padding_mask", "not:key_padding_mask"])
def test_a_name_is_taken_as_it_is(wanted: str) -> None:
    assert padding_input(_program(ONES.bool(), "key_padding_mask"), wanted) == wanted
    assert input_of(wanted) == "key_padding_mask"


@pytest.mark.parametrize("wanted", ["mask", "not:mask"])
def test_another_name_is_refused(wanted: str) -> None:
    with pytest.raises(UserError, match="'mask' is no input of shape"):
        padding_input(_program(ONES, "attention_mask"), wanted)


def test_inverted_ones_mark_padding() -> None:
    assert torch.equal(real_tokens({"m": ONES}, "m"), ONES.bool())
    assert torch.equal(real_tokens({"m": ONES}, "not:m"), ~ONES.bool())
