"""What other tools fold wrongly today, folded right or refused; the table is in ``tests.goals.miscompiles``."""

import pytest
import torch
from torch import Tensor, nn

from flowopt.passes.fold import fold_batch_norm
from flowopt.pipeline.presets import PRESETS
from flowopt.program.capture import capture
from flowopt.verification.verify_passes import VerifyPasses
from flowopt.workflows.pipelines import Pipeline
from tests.goals import miscompiles


@pytest.mark.parametrize("row", miscompiles.ROWS)
def test_is_right(row: str) -> None:
    miscompiles.ROWS[row]()


def test_linear_over_another_axis_is_refused_for_its_axis() -> None:
    module = nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5)).eval()
    run = Pipeline("exact").run(capture(module, (torch.ones(2, 5, 5),)), verify="off")
    refused = [r.code for record in run.records if record.name == "fold-batch-norm" for r in record.refused]
    assert refused == ["axis-mismatch"]


def unscaled_bias(
    weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor, plan: fold_batch_norm.Plan
) -> tuple[Tensor, Tensor]:
    """Row 1 as the other tool does it."""
    return weight * scale.reshape(-1, 1, 1, 1), shift if bias is None else bias + shift


def test_the_row_fails_when_the_bias_is_not_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fold_batch_norm, "_folded", unscaled_bias)
    with pytest.raises(AssertionError, match="undone: .*fold-batch-norm: twin gate"):
        miscompiles.conv_with_a_bias()


def test_the_row_fails_without_verification_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fold_batch_norm, "_folded", unscaled_bias)
    monkeypatch.setattr(VerifyPasses, "judge", lambda self, run: None)
    with pytest.raises(AssertionError, match="of the largest value"):
        miscompiles.conv_with_a_bias()


def test_a_row_fails_when_nothing_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "exact", PRESETS["none"])
    with pytest.raises(AssertionError, match="1 batch norms are left, not 0"):
        miscompiles.norm_without_affine()
