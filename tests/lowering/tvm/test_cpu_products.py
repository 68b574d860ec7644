"""Products in register tiles, against float64."""

from typing import Any

import numpy as np
import pytest
import torch

from tests.lowering.tvm.cpu_modules import kernels_of, module_of, numbers, require_close, runner

FLOAT = "float32"


def _exact(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a.astype(np.float64) @ b.astype(np.float64)


def _matmul(a: Any, b: Any) -> Any:
    from tvm import relax

    return relax.op.matmul(a, b)


# One, below, at and above whole tiles of rows; whole, partial and single panels of columns; odd depths.
@pytest.mark.parametrize(
    ("rows", "columns", "depth"),
    [(1, 64, 64), (1, 70, 33), (5, 1, 7), (6, 130, 1), (13, 64, 31), (14, 33, 64), (15, 200, 65), (128, 5, 16)],
)
def test_product_with_a_weight(rows: int, columns: int, depth: int) -> None:
    a, w = numbers(rows, depth), numbers(depth, columns, seed=1)
    run = runner(module_of(_matmul, [((rows, depth), FLOAT)], [(depth, columns)]), [w])
    require_close(run(a), _exact(a, w), 1e-6)  # at most 65 additions in a chain


def test_product_with_a_free_number_of_rows() -> None:
    w = numbers(40, 72, seed=1)
    run = runner(module_of(_matmul, [(("batch", "sequence", 40), FLOAT)], [(40, 72)]), [w])
    for batch, sequence in ((1, 1), (2, 5), (1, 6), (3, 7), (1, 128)):
        a = numbers(batch, sequence, 40)
        require_close(run(a), _exact(a, w), 1e-6)  # 40 additions in a chain


def test_product_whose_rows_are_a_product_of_free_extents() -> None:
    from tvm import relax

    def body(x: Any, w: Any, bias: Any) -> Any:
        batch, sequence, depth = x.ty.shape.values
        return relax.op.add(relax.op.matmul(relax.op.reshape(x, [batch * sequence, depth]), w), bias)

    w, bias = numbers(24, 40, seed=1), numbers(40, seed=2)
    run = runner(module_of(body, [(("batch", "sequence", 24), FLOAT)], [(24, 40), (40,)]), [w, bias])
    for batch, sequence in ((1, 1), (2, 7)):
        a = numbers(batch, sequence, 24)
        require_close(run(a), (_exact(a, w) + bias).reshape(-1, 40), 1e-6)  # 24 additions in a chain


def test_batched_product_of_two_activations_with_free_extents() -> None:
    run = runner(
        module_of(_matmul, [(("batch", 3, "queries", 20), FLOAT), (("batch", 3, 20, "keys"), FLOAT)]),
    )
    for batch, queries, keys in ((1, 1, 1), (2, 5, 63), (1, 13, 64), (2, 7, 65)):
        a, b = numbers(batch, 3, queries, 20), numbers(batch, 3, 20, keys, seed=1)
        require_close(run(a, b), _exact(a, b), 1e-6)  # 20 additions in a chain


def test_leading_extents_of_one_are_broadcast() -> None:
    run = runner(module_of(_matmul, [((4, 1, 9, 10), FLOAT), ((1, 3, 10, 17), FLOAT)]))
    a, b = numbers(4, 1, 9, 10), numbers(1, 3, 10, 17, seed=1)
    require_close(run(a, b), _exact(a, b), 1e-6)  # 10 additions in a chain


def test_one_row_for_each_element_of_the_batch() -> None:
    w = numbers(32, 48, seed=1)
    run = runner(module_of(_matmul, [(("batch", 1, 32), FLOAT)], [(32, 48)]), [w])
    for batch in (1, 8):
        a = numbers(batch, 1, 32)
        require_close(run(a), _exact(a, w), 1e-6)  # 32 additions in a chain


def _linear_gelu_residual(x: Any, residual: Any, weight: Any, bias: Any) -> Any:
    from tvm import relax

    product = relax.op.matmul(x, relax.op.permute_dims(weight, [1, 0]))
    return relax.op.add(relax.op.nn.gelu(relax.op.add(product, bias)), residual)


def _gelu(x: np.ndarray) -> np.ndarray:
    return torch.nn.functional.gelu(torch.from_numpy(x)).numpy()


def _fused_module(rows: int | str) -> Any:
    return module_of(_linear_gelu_residual, [((rows, 40), FLOAT), ((rows, 72), FLOAT)], [(72, 40), (72,)])


@pytest.mark.parametrize("rows", [11, "rows"])
def test_what_follows_elementwise_joins_the_kernel_and_packing_leaves_main(rows: int | str) -> None:
    assert len(kernels_of(_fused_module(rows))) == 1


def test_bias_gelu_and_residual_on_the_tile() -> None:
    x, residual, weight, bias = numbers(11, 40), numbers(11, 72), numbers(72, 40, seed=1), numbers(72, seed=2)
    run = runner(_fused_module("rows"), [weight, bias])
    hidden = _exact(x, weight.T) + bias
    exact = _gelu(hidden) + residual
    require_close(run(x, residual), exact, 1e-6)  # 40 additions in a chain


def test_products_of_float64_stay_float64() -> None:
    run = runner(module_of(_matmul, [((5, 9), "float64"), ((9, 4), "float64")]))
    a, b = numbers(5, 9).astype(np.float64), numbers(9, 4).astype(np.float64)
    require_close(run(a, b), a @ b, 1e-14)  # 9 additions in float64
