"""Data that the original itself cannot take, or gives no numbers for, are told of before anything is measured."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flowopt
from flowopt.errors import UserError
from flowopt.program.program import Program
from tests.workflows.adapting.tiny import VOCABULARY, Block, captured, post_norm_program, texts
from tests.workflows.adapting.tiny_runs import NOTHING, QUICK
from tests.zoo.randomise import randomise

METHODS = [{"swap_norm": "unified"}, {"linearize": "elu"}]


class Masked(nn.Module):
    """A tagger that adds minus infinity at padding: softmax of nothing else is NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 16)
        self.block = Block(is_pre_norm=True)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.embed(input_ids)
        scores = (x @ x.transpose(1, 2)).masked_fill(attention_mask[:, None] == 0, -torch.inf)
        out: Tensor = self.block(scores.softmax(-1) @ x, attention_mask)
        return out


def masked() -> Program:
    module = Masked().eval()
    randomise(module, seed=3)
    names = ("input_ids", "attention_mask")
    dynamic = {name: {0: "batch"} for name in names}
    return captured({"module": module, "kwargs": texts(3, seed=0), "dynamic": dynamic, "dims": {"batch": (1, 64)}})


def adapted(program: Program, folder: Path, **changed: Any) -> flowopt.AdaptResult:
    given: dict[str, Any] = {"data": texts(64, seed=1), "held_out": texts(16, seed=2), "batch_size": 8}
    given |= {"folder": folder, "timing": False, "target": "torch", "force": True, "recovery": QUICK}
    return flowopt.adapt(program, **(given | changed))


def padded(count: int, seed: int, *rows: int) -> dict[str, Tensor]:
    given = texts(count, seed)
    given["attention_mask"][list(rows)] = 0
    return given


def foreign(count: int, seed: int, row: int) -> dict[str, Tensor]:
    given = texts(count, seed)
    given["input_ids"][row, 1] = VOCABULARY
    return given


@pytest.mark.parametrize("method", METHODS)
def test_a_held_out_sample_of_padding_alone_is_named(method: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        adapted(masked(), tmp_path / "out", held_out=padded(16, 2, 11), **method)
    wanted = "the original itself gives NaN for sample 3 of batch 1 of the held-out data (all of it is padding?)"
    assert (caught.value.message, caught.value.hint) == (wanted, "leave those samples out")


@pytest.mark.parametrize("dry_run", [False, True])
def test_so_is_one_that_is_calibrated_on(dry_run: bool, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gives NaN for sample \d of batch \d of the training data"):
        adapted(masked(), tmp_path / "out", data=padded(64, 1, 5), dry_run=dry_run, **METHODS[1])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dry_run", [False, True])
def test_ids_beyond_the_vocabulary_are_the_datas_fault(method: dict[str, str], dry_run: bool, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        adapted(post_norm_program(), tmp_path / "out", data=foreign(64, 1, 5), dry_run=dry_run, **method)
    assert caught.value.message.startswith("the original itself does not run on batch ")
    assert caught.value.message.endswith("of the training data: index out of range in self")
    assert "embedding" in caught.value.why and "ids below the size of its vocabulary" in caught.value.hint


@pytest.mark.parametrize("method", METHODS)
def test_held_out_ids_beyond_the_vocabulary_too(method: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not run on batch 1 of the held-out data: index out of range"):
        adapted(post_norm_program(), tmp_path / "out", held_out=foreign(16, 2, 9), recovery=NOTHING, **method)
