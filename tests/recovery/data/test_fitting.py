"""Arrays become batches when they fit a model, and are refused with what, where and what to do when they do not."""

from typing import Any

import numpy as np
import pytest
import torch

from flowopt.errors import UserError
from flowopt.recovery.data.fitting import Fitting
from tests.recovery.data import interfaces


def refusal(value: object, interface: Any = None) -> UserError:
    with pytest.raises(UserError) as caught:
        Fitting(interface or interfaces.vectors()).batch("data.npz", value)
    assert "data.npz" in caught.value.message and caught.value.hint
    return caught.value


def rows(*numbers: float) -> torch.Tensor:
    return torch.tensor([[n] * 3 for n in numbers], dtype=torch.float32)


def test_arrays_that_are_no_inputs_are_passed_along() -> None:
    found = Fitting(interfaces.vectors()).batch("data.npz", {"x": rows(1, 2), "label": np.array([3, 4])})
    assert found.inputs.keys() == {"x"} and found.extra["label"].tolist() == [3, 4]


def test_a_tuple_is_the_inputs_in_order_and_labels() -> None:
    found = Fitting(interfaces.text()).batch("d", (torch.ones(2, 5).long(), torch.ones(2, 5).bool(), [0, 1]))
    assert found.inputs.keys() == {"ids", "mask"} and found.extra["labels"].tolist() == [0, 1]


def test_one_array_is_the_only_input() -> None:
    assert Fitting(interfaces.vectors()).batch("d", rows(1, 2)).inputs["x"].shape == (2, 3)


def test_a_tuple_of_too_many_arrays_is_refused() -> None:
    assert "3 arrays, not arrays by name" in refusal((rows(1), rows(1), rows(1))).message


def test_text_is_no_array() -> None:
    assert "'x' is <U1, not an array of numbers" in refusal({"x": np.array(["a"])}).message


def test_without_an_input_both_lists_are_shown() -> None:
    found = refusal({"pixels": rows(1)})
    assert "no array with an input's name, but pixels" in found.message and "x: float32[batch, 3]" in found.hint


def test_a_missing_input_is_named() -> None:
    found = refusal({"ids": torch.ones(2, 5).long()}, interfaces.text())
    assert "lacks mask; it holds ids" in found.message


def test_no_arrays_are_no_data() -> None:
    assert "holds no arrays" in refusal({}).message


def test_arrays_of_length_zero_are_no_data() -> None:
    assert "holds no samples" in refusal({"x": torch.zeros(0, 3)}).message


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_floats_of_another_precision_are_cast(dtype: torch.dtype) -> None:
    found = Fitting(interfaces.vectors()).batch("d", {"x": rows(0.1, 2).to(dtype)})
    assert found.inputs["x"].dtype == torch.float32


def test_a_float_beyond_the_dtype_is_refused() -> None:
    found = refusal({"x": rows(1, 1).double() * 1e300})
    assert "'x' is float64, and some of its values do not exist in float32" in found.message


def test_integers_are_no_floats() -> None:
    assert "data.npz: 'x' is int64, but the model takes float32" in refusal({"x": rows(1).long()}).message


def test_floats_are_no_integers() -> None:
    given = {"ids": torch.ones(2, 5), "mask": torch.ones(2, 5).bool()}
    assert "'ids' is float32, but the model takes int64" in refusal(given, interfaces.text()).message


def test_zeros_and_ones_are_booleans_and_twos_are_not() -> None:
    ids, mask = torch.ones(2, 5, dtype=torch.int32), torch.ones(2, 5).long()
    found = Fitting(interfaces.text()).batch("d", {"ids": ids, "mask": mask})
    assert (found.inputs["ids"].dtype, found.inputs["mask"].dtype) == (torch.int64, torch.bool)
    assert "do not exist in bool" in refusal({"ids": ids, "mask": mask * 2}, interfaces.text()).message


@pytest.mark.parametrize("shape", [(2, 4), (2,), (2, 3, 1)])
def test_other_sizes_and_ranks_are_refused(shape: tuple[int, ...]) -> None:
    found = refusal({"x": torch.zeros(shape)})
    assert "input 'x' is float32" in found.message and "x: float32[batch, 3]" in found.message


def test_one_dimension_has_one_size() -> None:
    given = {"ids": torch.ones(2, 5).long(), "mask": torch.ones(2, 6).bool()}
    assert "dimension 'tokens' is 5 in 'ids' and 6 in 'mask'" in refusal(given, interfaces.text()).message


def test_more_samples_than_the_model_takes_at_once_are_data_all_the_same() -> None:
    assert Fitting(interfaces.vectors(dims=(2, 8))).batch("d", {"x": torch.zeros(99, 3)}).samples == 99


@pytest.mark.parametrize(("value", "name"), [(float("nan"), "a NaN"), (float("-inf"), "an infinity")])
def test_what_is_not_finite_is_found_in_its_row(value: float, name: str) -> None:
    found = refusal({"x": rows(1, 2, value, 4)})
    assert f"'x' holds {name}, first in row 2 (3 of 12 values" in found.message


def test_labels_are_finite_too() -> None:
    assert "'y' holds a NaN" in refusal({"x": rows(1, 2), "y": np.array([1.0, np.nan])}).message


def test_arrays_of_different_length_are_refused() -> None:
    found = refusal({"x": rows(1, 2), "label": torch.zeros(3)})
    assert "arrays of different length: x 2, label 3" in found.message


def test_a_bare_number_has_no_samples() -> None:
    assert "'classes' is a single number" in refusal({"x": rows(1, 2), "classes": np.int64(10)}).message


def test_without_a_shared_axis_lengths_are_free() -> None:
    found = Fitting(interfaces.graphs()).batch("d", (torch.zeros(5, 4), torch.zeros(2, 9).long(), 3))
    assert int(found.extra["labels"]) == 3
