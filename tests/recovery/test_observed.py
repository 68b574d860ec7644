"""What a fit is made on, and what it is judged by."""

import pytest
import torch

from flowopt.errors import UserError
from flowopt.recovery.data.batch_axis import BatchAxis
from flowopt.recovery.observed import Inputs, parted
from flowopt.recovery.ridge import refit_linears
from tests.recovery.swapped import batches, swapped_student
from tests.recovery.tiny_transformer import tiny_program


def numbered(first: int, samples: int) -> Inputs:
    x = torch.arange(first, first + samples)
    return {"x": x, "y": -x.unsqueeze(1)}


def test_of_several_batches_the_last_quarter_judges() -> None:
    made = [numbered(10 * i, 4) for i in range(8)]
    assert parted(made, None, BatchAxis(1, None)) == (made[:6], made[6:])


def test_a_single_batch_is_parted_by_samples() -> None:
    (fitted,), (judged,) = parted([numbered(0, 10)], None, BatchAxis(1, 64))
    assert (fitted["x"].tolist(), judged["x"].tolist()) == (list(range(8)), [8, 9])
    assert torch.equal(fitted["y"][:, 0], -fitted["x"]) and torch.equal(judged["y"][:, 0], -judged["x"])


def test_both_parts_are_what_the_model_takes() -> None:
    (fitted,), (judged,) = parted([numbered(0, 9)], None, BatchAxis(4, None))
    assert (len(fitted["x"]), len(judged["x"])) == (5, 4)


@pytest.mark.parametrize(
    ("samples", "axis"),
    [(1, BatchAxis(1, None)), (16, BatchAxis(16, 16)), (7, BatchAxis(4, None)), (8, None)],
)
def test_a_batch_that_cannot_be_parted_is_refused(samples: int, axis: BatchAxis | None) -> None:
    with pytest.raises(UserError, match="a fit needs samples to be judged by") as caught:
        parted([numbered(0, samples)], None, axis)
    assert "a single batch for calibration, which cannot be parted" in str(caught.value)
    assert "--recover distill" in caught.value.hint


def test_no_batch_at_all_is_told_as_that() -> None:
    with pytest.raises(UserError, match="a fit needs samples to be judged by") as caught:
        parted([], None, BatchAxis(1, None))
    assert "there is no batch" in str(caught.value)


def test_layers_are_refitted_on_one_batch() -> None:
    found = refit_linears(swapped_student(), tiny_program(), batches(1))
    assert found and all(refit.vectors > 0 for refit in found)
