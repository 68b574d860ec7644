"""How far one model is from another on held-out batches."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from flowopt.errors import UserError
from flowopt.recovery.data.batch import Batch
from flowopt.workflows.adapting.agreement import Measured, Metric, measured_agreement


def _measured(
    found: Tensor, known: Tensor, *, mask: Tensor | None = None, cut: int = 2, metric: Metric | None = None
) -> Measured:
    """Both tensors as outputs, in two batches that are split at ``cut``."""
    batches = []
    for part in (slice(0, cut), slice(cut, None)):
        inputs = {"at": torch.arange(len(known))[part]} | ({"mask": mask[part]} if mask is not None else {})
        batches.append(Batch(inputs, {"label": torch.arange(len(known))[part]}))
    return measured_agreement(
        lambda given: {"y": found[given["at"]]},
        lambda given: {"y": known[given["at"]]},
        batches,
        outputs=("y",),
        padding="mask" if mask is not None else None,
        metric=metric,
    )


def _random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_figures_are_those_of_all_rows_together() -> None:
    known, found = _random(5, 7, seed=0), _random(5, 7, seed=0) + 0.3 * _random(5, 7, seed=1)
    (one,) = _measured(found, known).agreement
    cosines = (found * known).sum(-1) / found.norm(dim=-1) / known.norm(dim=-1)
    assert one.rows == 5
    assert one.cosine == pytest.approx(float(cosines.mean()), rel=1e-12)  # the same sums in another order
    assert one.worst_cosine == pytest.approx(float(cosines.min()), rel=1e-12)  # likewise
    assert one.relative_error == pytest.approx(float((found - known).norm() / known.norm()), rel=1e-12)  # likewise
    assert one.top1 == float((found.argmax(-1) == known.argmax(-1)).double().mean())


def test_rows_at_padding_do_not_count() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1]])
    known = _random(3, 3, 4, seed=2)
    found = torch.where(mask.bool().unsqueeze(-1), known, torch.full_like(known, torch.nan))
    (one,) = _measured(found, known, mask=mask).agreement
    assert (one.rows, one.cosine, one.relative_error, one.top1) == (6, 1.0, 0.0, 1.0)


def test_a_not_a_number_shows() -> None:
    known = _random(4, 3, seed=3)
    found = known.clone()
    found[1, 1] = torch.nan
    (one,) = _measured(found, known).agreement
    assert one.cosine != one.cosine
    assert one.relative_error != one.relative_error


def test_numbers_without_a_row_have_no_choice() -> None:
    (one,) = _measured(_random(4, seed=4), _random(4, seed=5)).agreement
    assert (one.rows, one.top1) == (4, None)


def test_the_metric_is_the_mean_over_samples_and_sees_the_batch() -> None:
    def first_labels(
        outputs: Mapping[str, Tensor], original: Mapping[str, Tensor], batch: Mapping[str, Tensor]
    ) -> float:
        assert outputs["y"].shape == original["y"].shape
        return float(batch["label"].double().mean())

    assert _measured(_random(5, 2, seed=6), _random(5, 2, seed=6), cut=1, metric=first_labels).metric == 2.0


def test_a_metric_that_is_no_number_is_refused() -> None:
    with pytest.raises(UserError, match="the metric gave str, which is no number"):
        _measured(_random(3, 2, seed=7), _random(3, 2, seed=7), metric=lambda *_: "good")  # type: ignore[arg-type]  # what is refused


def test_without_held_out_data_there_is_nothing_to_say() -> None:
    with pytest.raises(UserError, match="no held-out data"):
        measured_agreement(dict, dict, [], outputs=())
