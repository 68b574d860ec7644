"""Causal convolutions of every channel with a kernel of its own, as operators: at once, in chunks, by spectra."""

import operator
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, fx

from flowopt.ops.ssm.chunk_tables import ChunkTables
from flowopt.passes.fold._fft_convolution import FftConvolution, size_of
from flowopt.rewrite import Edit

_aten = torch.ops.aten


def spread(edit: Edit, x: fx.Node, name: str) -> fx.Node:
    """``x`` (B, H, L), with all steps of a channel NaN where one is no number or infinite, as a transform has it."""
    total = edit.call(_aten.sum.dim_IntList, x, [2], True)
    # A stored zero: what multiplies with a written one may be simplified away.
    zero = edit.parameter(f"{name}.zero", torch.zeros(1, dtype=torch.float64), like=x)
    return edit.call(_aten.add.Tensor, x, edit.call(_aten.mul.Tensor, total, zero))


def convolved(edit: Edit, x: fx.Node, taps: Tensor, name: str) -> fx.Node:
    """One depthwise convolution of ``x`` (B, H, L) with ``taps`` (H, longest)."""
    channels, longest = taps.shape
    weight = edit.parameter(f"{name}.taps", taps.flip(-1)[:, None], like=x)
    padded = edit.call(_aten.constant_pad_nd.default, x, [longest - 1, 0])
    return edit.call(_aten.conv1d.default, padded, weight, None, [1], [0], [1], channels)


def chunked(edit: Edit, x: fx.Node, tables: ChunkTables, name: str) -> fx.Node:
    """Products inside chunks of ``x`` (B, H, L), and a state between them that is summed by doubling distances."""
    stored = {field.name: getattr(tables, field.name) for field in fields(ChunkTables) if field.name != "decays"}
    enter, leave = (edit.parameter(f"{name}.{key}", value, like=x) for key, value in stored.items())
    chunk = tables.leave.shape[-1]
    states = tables.leave.shape[1] // 2
    batch, channels, steps = (_size(edit, x, axis) for axis in range(3))
    count = _rounded_up(edit, steps, chunk)
    # As many zeros as any length needs, and the last chunk is cut where it is full.
    padded = edit.call(_aten.constant_pad_nd.default, x, [0, chunk - 1])
    whole = edit.call(_aten.slice.Tensor, padded, 2, 0, _times(edit, count, chunk))
    blocks = edit.call(_aten.reshape.default, whole, [batch, channels, count, chunk])
    mixed = edit.call(_aten.matmul.default, blocks, enter)
    edges = (0, chunk, chunk + states, chunk + 2 * states)
    own, re, im = (
        edit.call(_aten.slice.Tensor, mixed, 3, start, end) for start, end in zip(edges, edges[1:], strict=False)
    )
    for at, pair in enumerate(tables.decays):
        decay_re, decay_im = (
            edit.parameter(f"{name}.decay{at}_{part}", value, like=x)
            for part, value in zip(("re", "im"), pair, strict=True)
        )
        before_re, before_im = (_chunks_before(edit, part, 2**at) for part in (re, im))
        turned_re = _call2(edit, _aten.sub.Tensor, before_re, decay_re, before_im, decay_im)
        turned_im = _call2(edit, _aten.add.Tensor, before_re, decay_im, before_im, decay_re)
        re, im = edit.call(_aten.add.Tensor, re, turned_re), edit.call(_aten.add.Tensor, im, turned_im)
    state = _chunks_before(edit, edit.call(_aten.cat.default, [re, im], 3), 1)
    y = edit.call(_aten.add.Tensor, own, edit.call(_aten.matmul.default, state, leave))
    flat = edit.call(_aten.reshape.default, y, [batch, channels, _times(edit, count, chunk)])
    return edit.call(_aten.slice.Tensor, flat, 2, 0, steps)


def transformed(edit: Edit, found: FftConvolution, taps: Tensor, name: str) -> fx.Node:
    """The product of spectra with that of the kernel stored: along ``found.axis`` of the input."""
    length = size_of(found.length)
    spectrum = torch.fft.rfft(taps, n=int(length))
    stored = edit.parameter(f"{name}.spectrum", spectrum if found.axis == 2 else spectrum.mT, like=found.product)
    signal = edit.call(_aten.fft_rfft.default, found.x, length, found.axis)
    product = edit.call(_aten.mul.Tensor, signal, stored)
    return edit.call(_aten.fft_irfft.default, product, length, found.axis)


def _chunks_before(edit: Edit, value: fx.Node, distance: int) -> fx.Node:
    """What stands some chunks before, along axis 2; zeros where nothing does."""
    padded = edit.call(_aten.constant_pad_nd.default, value, [0, 0, distance, 0])
    return edit.call(_aten.slice.Tensor, padded, 2, 0, -distance)


def _call2(edit: Edit, target: Any, a: fx.Node, b: fx.Node, c: fx.Node, d: fx.Node) -> fx.Node:
    """``target(a b, c d)``"""
    left, right = (edit.call(_aten.mul.Tensor, *factors) for factors in ((a, b), (c, d)))
    return edit.call(target, left, right)


def _size(edit: Edit, x: fx.Node, axis: int) -> Any:
    size = x.meta["val"].shape[axis]
    return size if isinstance(size, int) else edit.call(_aten.sym_size.int, x, axis)


def _rounded_up(edit: Edit, size: Any, chunk: int) -> Any:
    if isinstance(size, int):
        return -(-size // chunk)
    return edit.call(operator.floordiv, edit.call(operator.add, size, chunk - 1), chunk)


def _times(edit: Edit, count: Any, chunk: int) -> Any:
    return count * chunk if isinstance(count, int) else edit.call(operator.mul, count, chunk)
