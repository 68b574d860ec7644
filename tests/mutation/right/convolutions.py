"""Convolutions by other algorithms, in other layouts, in parts."""

import itertools
from typing import Any, Final

import torch
from torch import fx

from flowopt.ir.metadata import recorded_tensor, static_size
from flowopt.rewrite import Edit
from tests.mutation.right.kind import Kind, built
from tests.mutation.right.term import Term, arguments, aten, is_call, is_stored, joined, raw_arguments

_CONV1D, _CONV2D, _CONV3D = aten.conv1d.default, aten.conv2d.default, aten.conv3d.default
_ANY = (_CONV1D, _CONV2D, _CONV3D)
_PAD = aten.constant_pad_nd.default
_SCALE = 3.0


def _convolved(node: fx.Node, x: Term, weight: Term, bias: Term | None, **changed: Any) -> Term:
    """The convolution of ``node`` with other operands and, where named, other attributes."""
    a = raw_arguments(node) | changed
    return x.op(node.target, weight, bias, a["stride"], a["padding"], a["dilation"], a["groups"])


def _padded(a: dict[str, Any]) -> Term:
    """The input of a convolution with its padding around it."""
    x: Term = a["input"]
    around = [size for one in reversed(a["padding"]) for size in (one, one)]
    return x.op(_PAD, around) if any(around) else x


def _split_input_channels(edit: Edit, node: fx.Node) -> Term:
    """The sum over input channels in two parts."""
    a = arguments(edit, node)
    w = a["weight"].value()
    half = w.shape[1] // 2
    first = _convolved(node, a["input"].part(1, 0, half), a["weight"].stored(w[:, :half]), a["bias"])
    return first + _convolved(node, a["input"].part(1, half), a["weight"].stored(w[:, half:]), None)


def _split_output_channels(edit: Edit, node: fx.Node) -> Term:
    """Two convolutions that make half of the channels each; halves of the groups where there are some."""
    a = arguments(edit, node)
    w, groups = a["weight"].value(), a["groups"]
    half, parts = w.shape[0] // 2, []
    for rows in (slice(None, half), slice(half, None)):
        bias = a["bias"].stored(a["bias"].value()[rows]) if a["bias"] is not None else None
        middle = static_size(node.args[0], 1)
        assert middle is not None
        x = a["input"].part(1, *((0, middle // 2) if rows.start is None else (middle // 2, middle)))
        x = x if groups > 1 else a["input"]
        parts.append(_convolved(node, x, a["weight"].stored(w[rows]), bias, groups=max(groups // 2, 1)))
    return joined(parts, 1)


def _split_taps(edit: Edit, node: fx.Node) -> Term:
    """One product of a shifted image per tap of the kernel, added up."""
    a = arguments(edit, node)
    w, axes = a["weight"].value(), a["weight"].rank - 2
    x = _padded(a)
    total: Term | None = None
    for tap in itertools.product(*(range(n) for n in w.shape[2:])):
        shifted = x
        for axis in range(axes):
            stride, start = a["stride"][axis], tap[axis] * a["dilation"][axis]
            count = static_size(node, axis + 2)
            assert count is not None
            shifted = shifted.part(axis + 2, start, start + stride * (count - 1) + 1, stride)
        kernel = w[(slice(None), slice(None), *(slice(t, t + 1) for t in tap))]
        if w.shape[1] == 1 and a["groups"] == w.shape[0]:
            product = shifted * a["weight"].stored(kernel.flatten(0, 1))
        else:
            flat = {"stride": [1] * axes, "padding": [0] * axes}
            product = _convolved(node, shifted, a["weight"].stored(kernel), None, **flat)
        total = product if total is None else total + product
    assert total is not None
    return total + _column(a["bias"], axes) if a["bias"] is not None else total


def _column(bias: Term, axes: int) -> Term:
    return bias.stored(bias.value().reshape(-1, *[1] * axes))


def _as_patches(edit: Edit, node: fx.Node) -> Term:
    """Every patch as a row, times the kernel as a matrix."""
    a = arguments(edit, node)
    w = a["weight"].value()
    x = _padded(a)
    for axis, (size, stride) in enumerate(zip(w.shape[2:], a["stride"], strict=True), start=2):
        x = x.op(aten.unfold.default, axis, size, stride)
    axes = list(range(w.dim() - 2))
    places = [axis + 2 for axis in axes]
    x = x.op(aten.permute.default, [0, *places, 1, *(p + len(axes) for p in places)]).contiguous()
    rows = x.op(aten.flatten.using_ints, len(axes) + 1, -1)
    result = rows.op(aten.linear.default, a["weight"].stored(w.flatten(1)), a["bias"])
    return result.op(aten.movedim.int, -1, 1).contiguous()


def _bias_apart(edit: Edit, node: fx.Node) -> Term:
    """conv(x, W, b) = conv(x, W) + b."""
    a = arguments(edit, node)
    return _convolved(node, a["input"], a["weight"], None) + _column(a["bias"], a["weight"].rank - 2)


def _as_linear(edit: Edit, node: fx.Node) -> Term:
    """A 1 x 1 convolution is a linear layer over the channels, moved to the last axis."""
    a = arguments(edit, node)
    x: Term = a["input"]
    for axis, stride in enumerate(a["stride"], start=2):
        x = x.part(axis, 0, step=stride) if stride > 1 else x
    weight = a["weight"].stored(a["weight"].value().flatten(1))
    last = x.op(aten.movedim.int, 1, -1).op(aten.linear.default, weight, a["bias"])
    return last.op(aten.movedim.int, -1, 1).contiguous()


def _channels_last(edit: Edit, node: fx.Node) -> Term:
    """The same convolution with its input and weight in the channels-last layout."""
    a = arguments(edit, node)
    moved = [a[n].op(aten.clone.default, memory_format=torch.channels_last) for n in ("input", "weight")]
    return _convolved(node, moved[0], moved[1], a["bias"]).contiguous()


def _with_one_more_axis(edit: Edit, node: fx.Node) -> Term:
    """A convolution over n axes is one over n + 1 whose new axis has length one."""
    a = arguments(edit, node)
    target = _CONV2D if node.target is _CONV1D else _CONV3D
    weight = a["weight"].stored(a["weight"].value().unsqueeze(2))
    x = a["input"].op(aten.unsqueeze.default, 2)
    sizes = [[1, *a["stride"]], [0, *a["padding"]], [1, *a["dilation"]]]
    return x.op(target, weight, a["bias"], *sizes, a["groups"]).op(aten.squeeze.dim, 2)


def _as_transposed(edit: Edit, node: fx.Node) -> Term:
    """A convolution with stride one is a transposed convolution with the kernel turned round."""
    a = arguments(edit, node)
    w = a["weight"].value()
    turned = w.flip(*range(2, w.dim())).transpose(0, 1)
    padding = [k - 1 - p for k, p in zip(w.shape[2:], a["padding"], strict=True)]
    ones = [1] * len(padding)
    target = aten.conv_transpose1d.default if w.dim() == 3 else aten.conv_transpose2d.input
    return a["input"].op(target, a["weight"].stored(turned), a["bias"], ones, padding)


def _from_transposed(edit: Edit, node: fx.Node) -> Term:
    """A transposed convolution with stride one is a convolution with the kernel turned round."""
    a = arguments(edit, node)
    w = a["weight"].value()
    turned = w.flip(*range(2, w.dim())).transpose(0, 1)
    padding = [k - 1 - p for k, p in zip(w.shape[2:], a["padding"], strict=True)]
    target = _CONV1D if w.dim() == 3 else _CONV2D
    return a["input"].op(target, a["weight"].stored(turned), a["bias"], [1] * len(padding), padding)


def _scaled(edit: Edit, node: fx.Node) -> Term:
    """conv(x, W, b) = conv(x, c W, c b) / c."""
    a = arguments(edit, node)
    bias = a["bias"].stored(_SCALE * a["bias"].value()) if a["bias"] is not None else None
    return _convolved(node, a["input"], a["weight"].stored(_SCALE * a["weight"].value()), bias) / _SCALE


def _padding_apart(edit: Edit, node: fx.Node) -> Term:
    """The zeros of the padding as an operator of their own."""
    a = arguments(edit, node)
    return _convolved(node, _padded(a), a["weight"], a["bias"], padding=[0] * len(a["padding"]))


def _padding_absorbed(edit: Edit, node: fx.Node) -> Term:
    """Zeros around the input become the padding of the convolution."""
    a = arguments(edit, node)
    pad = raw_arguments(a["input"].node)
    return _convolved(node, Term(edit, pad["self"]), a["weight"], a["bias"], padding=list(pad["pad"])[::-2])


def _follows_even_zeros(node: fx.Node) -> bool:
    a = raw_arguments(node)
    if not is_call(a["input"], aten.pad.default) or any(a["padding"]):
        return False
    pad = raw_arguments(a["input"])
    sizes = list(pad["pad"])
    zeros = pad["mode"] == "constant" and not pad["value"]
    return zeros and len(sizes) == 4 and sizes[0] == sizes[1] and sizes[2] == sizes[3]


def _is_stored_conv(node: fx.Node) -> bool:
    a = raw_arguments(node)
    return is_stored(a["weight"]) and (a["bias"] is None or is_stored(a["bias"]))


def _weight_shape(node: fx.Node) -> torch.Size:
    weight = recorded_tensor(raw_arguments(node)["weight"])
    assert weight is not None
    return weight.shape


def _has_one_group(node: fx.Node) -> bool:
    return _is_stored_conv(node) and raw_arguments(node)["groups"] == 1


def _sums_channels(node: fx.Node) -> bool:
    return _has_one_group(node) and _weight_shape(node)[1] >= 2


def _has_even_groups(node: fx.Node) -> bool:
    groups = raw_arguments(node)["groups"]
    return _is_stored_conv(node) and _weight_shape(node)[0] >= 2 and (groups == 1 or groups % 2 == 0)


def _has_taps(node: fx.Node) -> bool:
    """Few taps, known sizes, and either one group or one channel in each."""
    a, shape = raw_arguments(node), _weight_shape(node)
    known = all(static_size(node, axis) is not None for axis in range(2, len(shape)))
    depthwise = shape[1] == 1 and a["groups"] == shape[0]
    return _is_stored_conv(node) and known and (a["groups"] == 1 or depthwise) and 1 < shape[2:].numel() <= 16


def _has_patches(node: fx.Node) -> bool:
    a = raw_arguments(node)
    return _has_one_group(node) and _weight_shape(node)[2:].numel() > 1 and all(n == 1 for n in a["dilation"])


def _is_pointwise(node: fx.Node) -> bool:
    return _has_one_group(node) and _weight_shape(node)[2:].numel() == 1 and not any(raw_arguments(node)["padding"])


def _has_bias(node: fx.Node) -> bool:
    return _is_stored_conv(node) and raw_arguments(node)["bias"] is not None


def _is_padded(node: fx.Node) -> bool:
    return any(raw_arguments(node)["padding"])


def _has_stride_one(node: fx.Node) -> bool:
    a = raw_arguments(node)
    is_plain = a["groups"] == 1 and all(n == 1 for n in (*a["stride"], *a["dilation"]))
    extra = a.get("output_padding", [0])
    fits = all(p < k for p, k in zip(a["padding"], _weight_shape(node)[2:], strict=True))
    return _is_stored_conv(node) and is_plain and not any(extra) and fits


KINDS: Final[tuple[Kind, ...]] = (
    built("conv-as-patches", _ANY, _as_patches, _has_patches, keeps_16_bits=True),
    built("conv-split-inputs", _ANY, _split_input_channels, _sums_channels, keeps_16_bits=True),
    built("conv-split-outputs", _ANY, _split_output_channels, _has_even_groups, keeps_16_bits=True),
    built("conv-split-taps", _ANY, _split_taps, _has_taps),
    built("conv-bias-apart", _ANY, _bias_apart, _has_bias, keeps_16_bits=True),
    built("conv-as-linear", _ANY, _as_linear, _is_pointwise, keeps_16_bits=True),
    built("conv-channels-last", (_CONV2D,), _channels_last, _is_stored_conv, keeps_16_bits=True),
    built("conv-one-more-axis", (_CONV1D, _CONV2D), _with_one_more_axis, _is_stored_conv, keeps_16_bits=True),
    built("conv-as-transposed", (_CONV1D, _CONV2D), _as_transposed, _has_stride_one, keeps_16_bits=True),
    built(
        "conv-from-transposed",
        (aten.conv_transpose1d.default, aten.conv_transpose2d.input),
        _from_transposed,
        _has_stride_one,
        keeps_16_bits=True,
    ),
    built("conv-scaled", _ANY, _scaled, _is_stored_conv),
    built("conv-padding-apart", _ANY, _padding_apart, _is_padded, keeps_16_bits=True),
    built("conv-padding-absorbed", (_CONV2D,), _padding_absorbed, _follows_even_zeros, keeps_16_bits=True),
)
