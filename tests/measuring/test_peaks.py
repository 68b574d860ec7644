import json
from typing import Any

import pytest
import torch

from flowopt.analysis.products import Product, Shaped, products
from flowopt.measuring import peaks
from flowopt.measuring.peaks import measured_peaks
from flowopt.measuring.process import ContenderFailedError
from flowopt.program.program import Program

SIZES = {"batch": 2, "sequence": 4}


def test_arguments_come_back_as_they_were_told() -> None:
    arguments = (Shaped((2, 3), "float32"), (1, 1), None, 0.5, True, Shaped((4,), "int64"))
    first, pads, *plain, last = peaks._made(json.loads(json.dumps(peaks._tell(arguments))))
    assert (first.shape, first.dtype) == ((2, 3), torch.float32)
    assert (pads, plain) == ([1, 1], [None, 0.5, True])
    assert (last.shape, last.dtype) == ((4,), torch.int64)


def test_the_products_of_a_model_run_alone(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured_peaks(products(program, SIZES), 1)
    assert found is not None
    assert found.flop == 2 * 8 * (8 * 16 + 16 * 3)  # eight positions through both layers
    assert found.moved_bytes == 4 * (8 * 8 + 8 * 16 + 16 + 8 * 16) + 4 * (8 * 16 + 16 * 3 + 3 + 8 * 3)
    assert found.flop_per_second > 0 and found.bytes_per_second > 0


def test_a_model_without_products_has_no_peaks() -> None:
    assert measured_peaks((), 1) is None


def test_a_product_that_torch_does_not_run_is_said() -> None:
    arguments: tuple[Any, ...] = (Shaped((2, 3), "float32"), Shaped((2, 3), "float32"))
    with pytest.raises(ContenderFailedError, match="RuntimeError: mat1 and mat2"):
        measured_peaks([Product("aten.mm.default", arguments, (), 1, 1, 1)], 1)
