"""exp, tanh, erf and sigmoid without the C library: their error in units in the last place."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.lowering.tvm.cpu_modules import module_of, runner

FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "exp": torch.exp,
    "tanh": torch.tanh,
    "erf": torch.erf,
    "sigmoid": torch.sigmoid,
}
# Everything from the smallest normal numbers to overflow, both signs, dense where the forms change.
MAGNITUDES = np.exp(np.linspace(np.log(1e-38), np.log(200.0), 1 << 17))
DENSE = np.linspace(-5.0, 5.0, 1 << 17)
POINTS = np.concatenate([MAGNITUDES, -MAGNITUDES, DENSE, np.linspace(-104.0, -86.0, 1 << 14)]).astype(np.float32)


def _run(name: str, points: np.ndarray) -> np.ndarray:
    from tvm import relax

    operator: Any = getattr(relax.op, name)
    return runner(module_of(operator, [(("points",), str(points.dtype))]))(points)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_error_in_units_in_the_last_place(name: str) -> None:
    # 1 / (1 + exp(-x)) is 0 where exp overflows, as in torch.
    points = POINTS[POINTS > -87.0] if name == "sigmoid" else POINTS
    exact = FUNCTIONS[name](torch.from_numpy(points).double()).numpy()
    found = _run(name, points)
    rounded = torch.from_numpy(exact).float().numpy()
    assert np.array_equal(np.isinf(found), np.isinf(rounded))
    finite = np.isfinite(rounded)
    units = np.abs(found[finite] - exact[finite]) / np.spacing(np.abs(rounded[finite])).astype(np.float64)
    # The sum and the quotient of sigmoid are rounded too.
    assert 0.5 < units.max() < (2.5 if name == "sigmoid" else 1.5)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_infinities_zero_and_nan(name: str) -> None:
    points = np.array([np.inf, -np.inf, np.nan, 0.0] * 8, np.float32)
    wanted = FUNCTIONS[name](torch.from_numpy(points)).numpy()
    assert np.array_equal(_run(name, points), wanted, equal_nan=True)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float64_keeps_its_precision(name: str) -> None:
    points = np.linspace(-6.0, 6.0, 65)
    wanted = FUNCTIONS[name](torch.from_numpy(points)).numpy()
    assert np.abs(_run(name, points) - wanted).max() <= 4 * np.spacing(np.abs(wanted).max())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float16_is_rounded_once(name: str) -> None:
    points = np.linspace(-6.0, 6.0, 64).astype(np.float16)
    exact = FUNCTIONS[name](torch.from_numpy(points).double()).numpy()
    found = _run(name, points)
    assert np.abs(found - exact).max() <= np.spacing(np.float16(np.abs(exact).max()))
