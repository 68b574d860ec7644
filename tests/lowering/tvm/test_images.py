"""Convolutions, pooling and interpolation."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowopt.errors import UserError
from tests.lowering.tvm.compare import captured, require_equivalent, require_near, results

pytest.importorskip("tvm")

_LINE, _IMAGE, _VOLUME = torch.randn(2, 4, 11), torch.randn(2, 4, 11, 7), torch.randn(1, 2, 5, 6, 4)

MODULES: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), _LINE),
    "depthwise conv1d": (lambda: nn.Conv1d(4, 8, 4, padding=3, groups=4, bias=False), _LINE),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=(2, 1), padding=(0, 2), dilation=(1, 2), groups=2), _IMAGE),
    "conv2d without batch": (lambda: nn.Conv2d(4, 6, 3), _IMAGE[0]),
    "conv2d padded to the same size": (lambda: nn.Conv2d(4, 6, (4, 3), padding="same", dilation=(1, 2)), _IMAGE),
    "conv2d padded by valid": (lambda: nn.Conv2d(4, 6, 3, padding="valid"), _IMAGE),
    "conv2d padded circularly": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), _IMAGE),
    "conv3d": (lambda: nn.Conv3d(2, 3, 3, padding=1, stride=2), _VOLUME),
    "transposed conv1d": (lambda: nn.ConvTranspose1d(4, 6, 4, stride=2, padding=1), _LINE),
    "transposed conv2d": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), _IMAGE),
    "dilated transposed conv2d": (lambda: nn.ConvTranspose2d(4, 3, (2, 3), (1, 3), dilation=(2, 1)), _IMAGE),
    "cropped transposed conv2d": (lambda: nn.ConvTranspose2d(4, 3, 2, stride=2, padding=2), _IMAGE),
    "transposed conv3d": (lambda: nn.ConvTranspose3d(2, 3, 2, stride=2, bias=False), _VOLUME),
}

FUNCTIONS: dict[str, tuple[Callable[[Tensor], Any], Tensor]] = {
    "max pooling": (lambda x: [F.max_pool2d(x, 3, 2, 1), F.max_pool2d(x, (2, 3), dilation=(1, 2))], _IMAGE),
    "max pooling over the end": (
        lambda x: [F.max_pool2d(x, 2, ceil_mode=True), F.max_pool2d(x, 3, 2, 1, ceil_mode=True)],
        _IMAGE,
    ),
    "max pooling of lines": (lambda x: [F.max_pool1d(x, 3, 2), F.max_pool1d(x, 2, ceil_mode=True)], _LINE),
    "max pooling of volumes": (lambda x: F.max_pool3d(x, 2), _VOLUME),
    "average pooling": (lambda x: [F.avg_pool2d(x, 3, 2, 1), F.avg_pool2d(x, (2, 3)), F.avg_pool2d(x[0], 2)], _IMAGE),
    "average pooling without padding": (lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), _IMAGE),
    "average pooling over the end": (
        lambda x: [
            F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
            F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False),
            F.avg_pool2d(x, 2, divisor_override=3),
        ],
        _IMAGE,
    ),
    "average pooling of lines": (lambda x: F.avg_pool1d(x, 3, 2, 1), _LINE),
    "adaptive average pooling": (
        lambda x: [F.adaptive_avg_pool2d(x, 1), F.adaptive_avg_pool2d(x, (4, 3)), F.adaptive_avg_pool2d(x, (None, 2))],
        _IMAGE,
    ),
    "adaptive pooling of lines": (lambda x: [F.adaptive_avg_pool1d(x, 4), F.adaptive_max_pool1d(x, 3)], _LINE),
    "adaptive max pooling": (lambda x: F.adaptive_max_pool2d(x, (5, 2)), _IMAGE),
    "nearest": (
        lambda x: [
            F.interpolate(x, scale_factor=2),
            F.interpolate(x, scale_factor=(1.5, 0.6)),
            F.interpolate(x, (5, 9)),
        ],
        _IMAGE,
    ),
    "nearest exact": (lambda x: F.interpolate(x, (5, 9), mode="nearest-exact"), _IMAGE),
    "nearest at positions that float32 rounds": (
        lambda x: (
            [F.interpolate(y, 82, mode=m).long() for y in (x, x[..., :2]) for m in ("nearest", "nearest-exact")]
            + [F.interpolate(x.to(dtype), 82, mode="nearest").long() for dtype in (torch.float16, torch.float64)]
        ),
        torch.arange(4.0)[None, None],
    ),
    "bilinear": (
        lambda x: [
            F.interpolate(x, scale_factor=2, mode="bilinear"),
            F.interpolate(x, (5, 9), mode="bilinear", align_corners=True),
            F.interpolate(x, scale_factor=(0.7, 1.3), mode="bilinear"),
        ],
        _IMAGE,
    ),
    "bilinear with a recomputed scale": (
        lambda x: F.interpolate(x, scale_factor=1.3, mode="bilinear", recompute_scale_factor=True),
        _IMAGE,
    ),
    "bicubic": (
        lambda x: [
            F.interpolate(x, (5, 9), mode="bicubic"),
            F.interpolate(x, (15, 9), mode="bicubic", align_corners=True),
        ],
        _IMAGE,
    ),
    "antialiased": (lambda x: F.interpolate(x, (5, 4), mode="bilinear", antialias=True), _IMAGE),
    "linear and trilinear": (lambda x: F.interpolate(x, (7, 3, 5), mode="trilinear"), _VOLUME),
    "linear": (lambda x: F.interpolate(x, 17, mode="linear"), _LINE),
}


CASES: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    **{name: (build(), (x,)) for name, (build, x) in MODULES.items()},
    **{name: (function, (x,)) for name, (function, x) in FUNCTIONS.items()},
    **{
        f"conv2d in {dtype}": (nn.Conv2d(64, 3, 3).to(dtype), (torch.randn(1, 64, 5, 5).to(dtype),))
        for dtype in (torch.float16, torch.bfloat16)
    },
}


@pytest.fixture(scope="module")
def outputs() -> dict[str, list[tuple[Tensor, ...]]]:
    return results(CASES)


@pytest.mark.parametrize("name", CASES)
def test_gives_what_torch_gives(name: str, outputs: dict[str, list[tuple[Tensor, ...]]]) -> None:
    for found, eager, exact in outputs[name]:
        require_near(found, eager, exact, name)


def test_images_of_free_size_are_doubled() -> None:
    program = captured(
        lambda x: F.max_pool2d(F.interpolate(x, scale_factor=2.0), 3, 2, 1),
        _IMAGE,
        free={"x": {0: "batch", 2: "height", 3: "width"}},
    )
    require_equivalent(program, (_IMAGE,), (torch.randn(1, 4, 6, 9),))


def test_the_places_of_pooled_maxima_are_refused() -> None:
    from flowopt.lowering.tvm.imported import imported

    with pytest.raises(UserError, match="result 1 of aten.max_pool2d_with_indices"):
        imported(captured(lambda x: F.max_pool2d(x, 2, return_indices=True)[1], _IMAGE))
