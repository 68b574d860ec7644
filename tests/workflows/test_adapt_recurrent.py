"""A trained causal transformer becomes a step: linearized, and lowered token by token."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

import flowopt
from flowopt.errors import UserError
from tests.recurrence.causal_models import VOCABULARY, Decoder, of_ids


def softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scaled_dot_product_attention(q, k, v, is_causal=True)


DATA = {"ids": torch.randint(0, VOCABULARY, (24, 9), generator=torch.Generator().manual_seed(3))}
RECOVERY = flowopt.RecoveryPlan(steps=("transfer",), transfer_steps=5)


class Reversing(nn.Module):
    """A decoder that says the last token first."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = Decoder(softmax)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.decoder(ids).flip(1)
        return out


def adapted(folder: Path, to: str, module: nn.Module | None = None) -> flowopt.AdaptResult:
    return flowopt.adapt(
        of_ids(module or Decoder(softmax)),
        linearize=to,
        form="recurrent",
        force=True,
        data=DATA,
        held_out=0.25,
        batch_size=6,
        recovery=RECOVERY,
        folder=folder,
    )


def test_the_artifact_streams_what_the_adapted_model_computes(tmp_path: Path) -> None:
    made = adapted(tmp_path / "out", "hedgehog")
    assert made.report is not None
    assert made.artifact is not None
    assert made.report.recurrence is not None
    assert made.report.outcome == "approximate"
    ids = DATA["ids"][:2]
    found = made.artifact.stream(batch=2).run(ids=ids)["output"]
    torch.testing.assert_close(found, made.program.run(ids), rtol=1e-5, atol=1e-5)


def test_what_cannot_be_a_step_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="hybrid cannot be lowered as a step"):
        adapted(tmp_path / "out", "hybrid")
    with pytest.raises(UserError, match="cannot go token by token"):
        adapted(tmp_path / "out", "elu", Reversing())
    assert not (tmp_path / "out").exists()


def test_softmax_that_is_kept_is_no_step(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a step carries no softmax"):
        flowopt.adapt(
            of_ids(Decoder(softmax)),
            linearize="elu",
            form="recurrent",
            keep_softmax=0.5,
            data=DATA,
            folder=tmp_path / "out",
        )
