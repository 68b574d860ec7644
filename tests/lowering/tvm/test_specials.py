"""NaN and infinities come through as in torch: a compiled model must not turn a broken number into a good one."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.lowering.tvm.compare import captured
from tests.lowering.tvm.small_library import run_plain, run_scheduled

NAN, INF = float("nan"), float("inf")
X = torch.tensor(
    [
        [NAN, 1.0, -2.0, INF, -INF, 0.0, 7.0, -0.5, 0.25],
        [1.0, 2.0, 3.0, 4.0, NAN, 6.0, -7.0, 8.0, -9.0],
        [-INF] * 9,
        [0.5, -0.5, 1.0, 2.0, 3.0, -1.0, -2.0, -3.0, 9.0],
    ]
)


def everything(x: Tensor, y: Tensor) -> dict[str, Tensor]:
    image = x[:, None, None, :].expand(4, 1, 3, 9)
    return {
        "relu": functional.relu(x),
        "relu6": functional.relu6(x),
        "clamp": x.clamp(-1, 2),
        "clamp_min": x.clamp(min=0.5),
        "hardtanh": functional.hardtanh(x),
        "hardsigmoid": functional.hardsigmoid(x),
        "hardswish": functional.hardswish(x),
        "elu": functional.elu(x),
        "leaky_relu": functional.leaky_relu(x),
        "maximum": torch.maximum(x, y),
        "minimum": torch.minimum(x, y),
        "amax": x.amax(1),
        "amin": x.amin(1),
        "max_pool": functional.max_pool2d(image, 3, 1, 1),
        "softmax": x.softmax(1),
        "sigmoid": x.sigmoid(),
        "tanh": x.tanh(),
        "exp": x.exp(),
        "differs": x != y,
        "less": x < y,
    }


@pytest.mark.parametrize("run", [run_plain, run_scheduled])
def test_what_is_not_finite_comes_through(run: object) -> None:
    assert callable(run)
    program = captured(everything, X, X.flip(1))
    inputs = dict(zip((i.name for i in program.inputs), (X, X.flip(1)), strict=True))
    found = run(program, inputs)
    for name, wanted in everything(X, X.flip(1)).items():
        assert torch.allclose(found[name].float(), wanted.float(), rtol=1e-5, atol=1e-6, equal_nan=True), name
