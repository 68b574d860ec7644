"""Softmax and normalisations over rows, against float64."""

from typing import Any

import numpy as np
import pytest

from tests.lowering.tvm.cpu_modules import module_of, numbers, require_close, runner

FLOAT = "float32"
LENGTHS = (1, 7, 16, 37, 64)


def _softmax(x: Any) -> Any:
    from tvm import relax

    return relax.op.nn.softmax(x, axis=-1)


def _exact_softmax(x: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        e = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
        return np.asarray(e / e.sum(-1, keepdims=True))


def _masked(rows: int, columns: int) -> np.ndarray:
    x = 10 * numbers(rows, columns)
    x[1:, columns // 2 + 1 :] = -np.inf
    return x


def test_softmax_of_free_lengths_with_masked_columns() -> None:
    run = runner(module_of(_softmax, [(("rows", "columns"), FLOAT)]))
    for columns in LENGTHS:
        x = _masked(5, columns)
        require_close(run(x), _exact_softmax(x), 1e-6)  # two roundings of exp, one of the sum and of the scale


@pytest.mark.parametrize("columns", [7, 37, 64])
def test_softmax_of_fixed_lengths(columns: int) -> None:
    x = _masked(5, columns)
    require_close(runner(module_of(_softmax, [((5, columns), FLOAT)]))(x), _exact_softmax(x), 1e-6)  # as above


def test_softmax_of_a_row_without_any_column_is_nan_as_in_torch() -> None:
    x = _masked(3, 20)
    x[2] = -np.inf
    found = runner(module_of(_softmax, [((3, 20), FLOAT)]))(x)
    assert np.isnan(found[2]).all() and np.isfinite(found[:2]).all()


def _layer_norm(x: Any, weight: Any, bias: Any) -> Any:
    from tvm import relax

    return relax.op.nn.layer_norm(x, weight, bias, axes=[-1], epsilon=1e-5)


def _exact_layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    centred = x - x.mean(-1, keepdims=True)
    return np.asarray(centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weight + bias)


@pytest.mark.parametrize("columns", LENGTHS)
def test_layer_norm(columns: int) -> None:
    x, weight, bias = numbers(2, 3, columns), numbers(columns, seed=1), numbers(columns, seed=2)
    run = runner(module_of(_layer_norm, [(("batch", 3, columns), FLOAT)], [(columns,), (columns,)]), [weight, bias])
    require_close(run(x), _exact_layer_norm(x, weight, bias), 1e-6)  # roundings of mean, variance and root


def test_layer_norm_of_a_large_offset_keeps_the_variance() -> None:
    x = numbers(4, 100) + np.float32(4096.0)
    ones, zeros = np.ones(100, np.float32), np.zeros(100, np.float32)
    run = runner(module_of(_layer_norm, [((4, 100), FLOAT)], [(100,), (100,)]), [ones, zeros])
    # The mean is rounded to 2^-11 of a unit; a difference of mean squares would be off by whole units.
    require_close(run(x), _exact_layer_norm(x, ones, zeros), 5e-4)


def test_rms_norm_of_a_free_batch() -> None:
    from tvm import relax

    weight = numbers(50, seed=1)
    module = module_of(
        lambda x, w: relax.op.nn.rms_norm(x, w, axes=[-1], epsilon=1e-6), [(("batch", 50), FLOAT)], [(50,)]
    )
    x = numbers(3, 50)
    exact = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-6) * weight
    require_close(runner(module, [weight])(x), exact, 1e-6)  # roundings of the mean square and the root
