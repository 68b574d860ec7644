"""Layers, and scales before and behind them."""

import math
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from tests.passes.fold.layers import CONVOLUTIONS, DTYPES, TRANSPOSED
from tests.passes.programs import Written, normal, randomised

WIDTH, HEADS = 12, 4


def factors(*shape: int, seed: int = 0) -> Tensor:
    """A layer scale: positive and negative factors between 1/2 and 2, none zero."""
    drawn = normal(*shape, seed=seed)
    return torch.where(drawn < 0, -1.0, 1.0) * drawn.abs().clamp(0.5, 2.0)


@st.composite
def scaled_layers(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """A layer whose output or input is scaled by one factor or by one for each feature, with an input."""
    axes, groups, behind = draw(st.integers(0, 3)), draw(st.sampled_from([1, 2])), draw(st.booleans())
    many_in, many_out = 2 * groups, 3 * groups
    bias, batch = draw(st.booleans()), draw(st.integers(1, 2))
    if axes == 0:
        layer: nn.Module = nn.Linear(many_in, many_out, bias=bias)
        shape: tuple[int, ...] = (batch, 3, many_in)
    else:
        kinds = TRANSPOSED if draw(st.booleans()) else CONVOLUTIONS
        options: dict[str, Any] = {"groups": groups, "bias": bias, "padding": draw(st.integers(0, 1))}
        layer = kinds[axes - 1](many_in, many_out, draw(st.integers(1, 3)), **options)
        shape = (batch, many_in, *[4] * axes)
    features = many_in if behind else many_out
    kind = draw(st.sampled_from(["number", "scalar", "element", "vector", "vector-with-batch"]))
    trailing = [1] * axes
    scale: Any = {
        "number": draw(st.sampled_from([0.5, -3.0, 1 / 3])),
        "scalar": torch.tensor(0.7),
        "element": torch.full([1] * (axes or 1), 1.3),
        "vector": factors(features, *trailing),
        "vector-with-batch": factors(1, features, *trailing) if axes else factors(1, 1, features),
    }[kind]
    return scaled(layer, scale, behind=behind, divide=draw(st.booleans()), dtype=draw(DTYPES)), normal(*shape)


def scaled(layer: nn.Module, scale: Any, *, behind: bool, divide: bool, dtype: torch.dtype = torch.float32) -> Written:
    """``scale`` before or behind a layer. The layer runs in ``dtype``, between casts."""

    def forward(m: Written, x: Tensor) -> Tensor:
        factor = m.scale if isinstance(scale, Tensor) else scale

        def by_it(y: Tensor) -> Tensor:
            return y / factor if divide else factor * y

        x = torch.sin(x.to(dtype))
        returned: Tensor = m.layer(by_it(x)) if behind else by_it(m.layer(x))
        return returned

    stored = {"scale": scale.to(dtype)} if isinstance(scale, Tensor) else {}
    return randomised(Written(forward, layer=layer.to(dtype), **stored))


def packed(style: str) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """A packed projection's output, cut into the heads of query, key and value."""

    def cut(y: Tensor) -> tuple[Tensor, ...]:
        batch, tokens, size = *y.shape[:2], WIDTH // HEADS
        if style == "unbind":
            return y.view(batch, tokens, 3, HEADS, size).permute(2, 0, 3, 1, 4).unbind(0)
        if style == "split":
            return tuple(t.view(batch, tokens, HEADS, size).transpose(1, 2) for t in y.split(WIDTH, -1))
        if style == "per-head":
            return y.view(batch, tokens, HEADS, 3 * size).transpose(1, 2).chunk(3, -1)
        view = y.view(batch, tokens, 3, HEADS, size)
        return tuple(view.select(2, i).transpose(1, 2) for i in range(3))

    return cut


def rotated(x: Tensor) -> Tensor:
    """Rotary positions, of one angle per position."""
    angle = torch.arange(x.shape[2], dtype=x.dtype)[:, None]
    turned = torch.cat([-x[..., 1:], x[..., :1]], -1)
    return x * angle.cos() + turned * angle.sin()


def attention(style: str = "split", *, rotary: bool = False, early: bool = False, bias: bool = True) -> Written:
    """Hand-written attention over a packed projection: scores divided by sqrt(d), or the query multiplied early."""
    root = math.sqrt(WIDTH // HEADS)

    def forward(m: Written, x: Tensor) -> Tensor:
        q, k, v = packed(style)(m.qkv(x))
        q, k = (rotated(q), rotated(k)) if rotary else (q, k)
        scores = (q * (1 / root)) @ k.transpose(-2, -1) if early else q @ k.transpose(-2, -1) / root
        y = F.softmax(scores, -1) @ v
        projected: Tensor = m.out(y.transpose(1, 2).reshape(*x.shape[:2], WIDTH))
        return projected

    parts = {"qkv": nn.Linear(WIDTH, 3 * WIDTH, bias=bias), "out": nn.Linear(WIDTH, WIDTH)}
    return randomised(Written(forward, **parts))
