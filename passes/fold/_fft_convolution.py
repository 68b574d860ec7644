"""Convolutions with a stored kernel that are written as a product of spectra."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from flowopt.ir.constants import is_parameter_only
from flowopt.ir.metadata import recorded_tensor, sizes_as_text
from flowopt.rewrite import Site

_aten = torch.ops.aten
INVERSES = (_aten.fft_irfft.default, _aten._fft_c2r.default)
_FORWARD = (_aten.fft_rfft.default, _aten._fft_r2c.default)
_PADS = (_aten.constant_pad_nd.default, _aten.pad.default)
# How often a transform is divided by the root of its length, by the name of the norm.
_FORWARD_NORMS = {None: 0, "backward": 0, "ortho": 1, "forward": 2}
_INVERSE_NORMS = {None: 2, "backward": 2, "ortho": 1, "forward": 0}
_RANK = 3
Size = int | torch.SymInt


@dataclass(frozen=True, slots=True)
class FftConvolution:
    """``result[.., t] = sum_l kernel[.., l] x[.., t - l]``, and ``skip x`` where that is added.

    Attributes:
        x: what is convolved, of rank 3, without the zeros that are appended to it.
        axis: of positions in ``x``, 1 or 2; channels are on the other one.
        kernel: with a channel's taps along ``kernel_axis``.
        kernel_axis: counted from the first.
        length: of the transforms.
        product: of the spectra.
        cut: the slice of the inverse transform.
        result: what is replaced: the slice, or its sum with the skip.
        skip: a stored factor of ``x``, one for each channel.
    """

    x: fx.Node
    axis: int
    kernel: fx.Node
    kernel_axis: int
    length: int | fx.Node
    product: fx.Node
    cut: fx.Node
    result: fx.Node
    skip: fx.Node | None


@dataclass(frozen=True, slots=True)
class _Transform:
    """Of real values: ``source`` without the zeros at its end, and which power of the length's root divides it."""

    node: fx.Node
    source: fx.Node
    length: Any
    axis: int
    roots: int


def fft_convolution(site: Site) -> FftConvolution:
    """The convolution that ends in the site's inverse transform; refuses what is none."""
    inverse = site.node
    product, length, axis, roots = _inverse(site, inverse)
    site.require(
        product.target is _aten.mul.Tensor and len(product.all_input_nodes) == 2,
        "unsupported-spelling",
        f"{inverse.name} reads {product.name}, which is no product of two spectra",
        product,
    )
    found = [_forward(site, node) for node in product.all_input_nodes]
    constant = [t for t in found if is_parameter_only(t.source) or not _depends_on_values(t.source)]
    site.require(len(constant) == 1, "not-constant", f"{product.name} multiplies spectra of inputs", product)
    (kernel,) = constant
    (signal,) = (t for t in found if t is not kernel)
    for transform in found:
        _require_like(site, transform, inverse, length, axis)
    site.require(
        sum(t.roots for t in found) + roots == 2,
        "unsupported-spelling",
        f"the norms of {inverse.name} and what it is made of scale the convolution",
    )
    for node in (signal.node, product):
        readers = [user.name for user in node.users]
        site.require(len(readers) == 1, "multiple-readers", f"{node.name} is read by {', '.join(readers)}", node)
    _require_channels(site, signal.source, kernel.source, axis)
    _require_long_enough(site, signal.source, axis, kernel, length)
    cut = _cut(site, inverse, axis)
    _require_inside(site, cut, signal.source, axis)
    kernel_axis = axis - _RANK + site.recorded(kernel.source).dim()
    result, skip = _with_skip(cut, signal.source, axis)
    return FftConvolution(signal.source, axis, kernel.source, kernel_axis, kernel.length, product, cut, result, skip)


def size_of(size: Any) -> Size:
    """An argument that is a size, as recorded."""
    return size.meta["val"] if isinstance(size, fx.Node) else size  # type: ignore[no-any-return]  # a size


def _depends_on_values(node: fx.Node) -> bool:
    """Whether a node is computed of an input's values, rather than of its sizes."""
    seen, pending = set[fx.Node](), [node]
    while pending:
        current = pending.pop()
        if current in seen or current.target is _aten.sym_size.int:
            continue
        seen.add(current)
        if current.op == "placeholder":
            return True
        pending.extend(current.all_input_nodes)
    return False


def _inverse(site: Site, node: fx.Node) -> tuple[fx.Node, Any, int, int]:
    """What is transformed back, to which length, along which axis, and by which power of the length's root."""
    value = site.recorded(node)
    args: tuple[Any, ...] = node.args
    if node.target is _aten._fft_c2r.default:
        source, axes, norm, length = args
        site.require(len(axes) == 1, "unsupported-spelling", f"{node.name} transforms {len(axes)} axes")
        return source, length, axes[0] % value.dim(), norm
    length, dim, norm = _arguments(node)
    axis = dim % value.dim()
    return args[0], value.shape[axis] if length is None else length, axis, _INVERSE_NORMS[norm]


def _forward(site: Site, node: fx.Node) -> _Transform:
    is_known = node.target in _FORWARD
    message = f"{node.name} is no transform of real values along one axis"
    site.require(is_known, "unsupported-spelling", message, node)
    args: tuple[Any, ...] = node.args
    value = site.recorded(args[0])
    if node.target is _aten._fft_r2c.default:
        _, axes, roots, is_onesided = args
        site.require(len(axes) == 1 and is_onesided, "unsupported-spelling", f"{message}, or gives both halves", node)
        axis, length = axes[0] % value.dim(), None
    else:
        length, dim, norm = _arguments(node)
        axis, roots = dim % value.dim(), _FORWARD_NORMS[norm]
    length = value.shape[axis] if length is None else length
    return _Transform(node, _unpadded(args[0], axis), length, axis - value.dim(), roots)


def _arguments(node: fx.Node) -> tuple[Any, int, Any]:
    """Length, axis and norm of ``fft_rfft`` and ``fft_irfft``."""
    given: dict[str, Any] = dict(zip(("n", "dim", "norm"), node.args[1:], strict=False)) | dict(node.kwargs)
    return given.get("n"), given.get("dim", -1), given.get("norm")


def _unpadded(node: fx.Node, axis: int) -> fx.Node:
    """What a node appends zeros to along the axis, or itself."""
    if node.target not in _PADS:
        return node
    args: tuple[Any, ...] = node.args
    source, sizes, *others = args
    # Of pad: mode, value. None is zero.
    if node.kwargs or any(other not in ("constant", 0, None) for other in others):
        return node
    at = 2 * (len(sizes_as_text(node)) - 1 - axis) + 1
    is_appended = at < len(sizes) and all(type(s) is int and s == 0 for place, s in enumerate(sizes) if place != at)
    is_cut = is_appended and type(sizes[at]) is int and sizes[at] < 0
    return source if is_appended and not is_cut else node


def _require_like(site: Site, transform: _Transform, inverse: fx.Node, length: Any, axis: int) -> None:
    rank = site.recorded(inverse).dim()
    site.require(
        rank == _RANK and axis in (1, 2) and transform.axis == axis - rank,
        "axis-mismatch",
        f"{transform.node.name} and {inverse.name} transform different axes, or not the second or third of three",
        transform.node,
    )
    site.require(
        str(size_of(transform.length)) == str(size_of(length)),
        "unsupported-spelling",
        f"{transform.node.name} has length {size_of(transform.length)}, {inverse.name} {size_of(length)}",
        transform.node,
    )


def _cut(site: Site, inverse: fx.Node, axis: int) -> fx.Node:
    """The one reader of the inverse transform, which takes its first values."""
    readers = list(inverse.users)
    is_output = any(user.op == "output" for user in readers)
    site.require(not is_output, "graph-output", f"{inverse.name} is an output of the model")
    site.require(len(readers) == 1, "multiple-readers", f"{inverse.name} is read {len(readers)} times")
    (cut,) = readers
    message = f"{cut.name} does not take the first values of {inverse.name}"
    site.require(takes_first(cut, axis, _RANK), "unsupported-spelling", message, cut)
    return cut


def takes_first(node: fx.Node, axis: int, rank: int) -> bool:
    """Whether a node is a slice of the first values along an axis."""
    if node.target is not _aten.slice.Tensor:
        return False
    args: tuple[Any, ...] = (*node.args, *(None,) * (5 - len(node.args)))
    return (args[1] or 0) % rank == axis and args[2] in (None, 0) and args[4] in (None, 1)


def _require_channels(site: Site, x: fx.Node, kernel: fx.Node, axis: int) -> None:
    sizes, taps = sizes_as_text(x), ("1",) * (_RANK - len(sizes_as_text(kernel))) + sizes_as_text(kernel)
    channels = sizes[3 - axis] if len(sizes) == _RANK else ""
    site.require(
        len(taps) == _RANK and channels.isdigit() and taps[0] == "1" and taps[3 - axis] == channels,
        "axis-mismatch",
        f"{kernel.name} {list(taps)} has no kernel for each channel of {x.name} {list(sizes)}",
        kernel,
    )
    is_fit = all(site.recorded(node).dtype in (torch.float32, torch.float64) for node in (x, kernel))
    site.require(is_fit, "unsupported-spelling", f"{x.name} or {kernel.name} is neither float32 nor float64")


def _require_long_enough(site: Site, x: fx.Node, axis: int, kernel: _Transform, length: Any) -> None:
    steps, taps = site.recorded(x).shape[axis], site.recorded(kernel.source).shape[kernel.axis]
    room = _expression(size_of(length)) - _expression(steps) - _expression(taps) + 1
    site.require(
        isinstance(room, int) or bool(room.is_number),
        "dynamic-shape",
        f"whether {size_of(length)} entries hold {steps} steps and {taps} taps depends on free sizes",
    )
    site.require(
        int(room) >= 0,
        "wraps-around",
        f"{size_of(length)} entries are too few for {steps} steps and {taps} taps",
        kernel.node,
    )


def _expression(size: Size) -> Any:
    return size if isinstance(size, int) else size.node.expr


def _require_inside(site: Site, cut: fx.Node, x: fx.Node, axis: int) -> None:
    taken, steps = site.recorded(cut).shape[axis], site.recorded(x).shape[axis]
    is_inside = str(taken) == str(steps) or (isinstance(taken, int) and isinstance(steps, int) and taken < steps)
    site.require(is_inside, "unsupported-spelling", f"{cut.name} takes {taken} values of {steps} steps", cut)


def _with_skip(cut: fx.Node, x: fx.Node, axis: int) -> tuple[fx.Node, fx.Node | None]:
    """The sum of the convolution with its input times one stored number for each channel, and these numbers."""
    if len(cut.users) != 1:
        return cut, None
    (total,) = cut.users
    if total.target is not _aten.add.Tensor or total.kwargs or sizes_as_text(total) != sizes_as_text(x):
        return cut, None
    for term in total.args:
        if not isinstance(term, fx.Node) or term.target is not _aten.mul.Tensor or x not in term.args:
            continue
        (factor,) = (a for a in term.args if a is not x) if term.args.count(x) == 1 else (None,)
        if isinstance(factor, fx.Node) and is_parameter_only(factor) and _is_per_channel(factor, x, axis):
            return total, factor
    return cut, None


def _is_per_channel(factor: fx.Node, x: fx.Node, axis: int) -> bool:
    value, like = recorded_tensor(factor), recorded_tensor(x)
    if value is None or like is None or value.dtype != like.dtype or value.dim() > _RANK:
        return False
    sizes = (1,) * (_RANK - value.dim()) + tuple(value.shape)
    return sizes[0] == 1 and sizes[axis] == 1 and sizes[3 - axis] in (1, like.shape[3 - axis])


def per_channel(factor: Tensor, channels: int) -> Tensor:
    """The value of a skip as (channels,)."""
    return factor.reshape(-1).expand(channels)
