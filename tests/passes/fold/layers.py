"""Strategies: layers with the batch norm behind them, and an input."""

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.passes.programs import Written, normal, randomised

CONVOLUTIONS: tuple[Any, ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED: tuple[Any, ...] = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS: tuple[Any, ...] = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16])


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """A convolution and its batch norm, with an input."""
    axes, groups = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 3]))
    depthwise = draw(st.booleans())
    channels_in = groups * (1 if depthwise else draw(st.integers(1, 2)))
    channels_out = groups * draw(st.integers(2 if groups == 1 else 1, 2))
    common: dict[str, Any] = {"groups": groups, "bias": draw(st.booleans()), "dilation": draw(st.integers(1, 2))}
    if draw(st.booleans()):
        stride = draw(st.integers(1, 2))
        more: dict[str, Any] = {
            "stride": stride,
            "padding": draw(st.integers(0, 1)),
            "output_padding": draw(st.integers(0, stride - 1)),
        }
        layer = TRANSPOSED[axes - 1](channels_in, channels_out, draw(st.integers(1, 3)), **common, **more)
    else:
        padding = draw(st.sampled_from([0, 1, 2, "same"]))
        more = {
            "padding": padding,
            "stride": 1 if padding == "same" else draw(st.integers(1, 2)),
            "padding_mode": draw(st.sampled_from(["zeros", "zeros", "reflect", "circular"])),
        }
        layer = CONVOLUTIONS[axes - 1](channels_in, channels_out, draw(st.integers(1, 3)), **common, **more)
    norm = NORMS[axes - 1](channels_out, eps=draw(st.sampled_from([1e-5, 1e-3, 0.5])), affine=draw(st.booleans()))
    dtype = draw(DTYPES)
    module = randomised(nn.Sequential(layer, norm), seed=draw(st.integers(0, 99))).to(dtype)
    return module, normal(draw(st.integers(1, 3)), channels_in, *[5] * axes, dtype=dtype)


@st.composite
def linear_layers(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """A linear layer and its batch norm, over a batch of vectors or of sequences, with an input."""
    width_in, width_out = draw(st.integers(1, 5)), draw(st.integers(2, 5))
    fc = nn.Linear(width_in, width_out, bias=draw(st.booleans()))
    norm = nn.BatchNorm1d(width_out, affine=draw(st.booleans()))
    batch, sequence, dtype = draw(st.integers(1, 3)), draw(st.sampled_from([None, 1, 4])), draw(DTYPES)
    if sequence is None:
        return randomised(nn.Sequential(fc, norm)).to(dtype), normal(batch, width_in, dtype=dtype)
    # Linear writes its features last, the norm reads them second.
    module = Written(lambda m, x: m.norm(m.fc(x).transpose(1, 2)).transpose(1, 2), fc=fc, norm=norm)
    return randomised(module).to(dtype), normal(batch, sequence, width_in, dtype=dtype)


def conv_then(between: Callable[[Tensor], Tensor], norm: nn.Module, channels: int = 4) -> Written:
    module = Written(lambda m, x: m.norm(between(m.conv(x))), conv=nn.Conv2d(3, channels, 2), norm=norm)
    return randomised(module)
