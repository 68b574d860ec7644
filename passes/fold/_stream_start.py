"""Where the scale of a residual stream is one, and whether scales and parameters stay in the range of their dtype."""

from collections import Counter
from collections.abc import Callable, Iterable
from math import log2
from typing import Final

import torch
from torch import Tensor, fx

from flowopt.analysis.affine_streams import AffineStream
from flowopt.analysis.channel_steps import scale_and_shift
from flowopt.ir.metadata import module_path, recorded_tensor
from flowopt.passes.fold._layers import freed_bytes
from flowopt.passes.fold._lost_digits import loses_digits
from flowopt.passes.fold._rescaled_stream import Readers, Rescaled, replaced_tensors
from flowopt.passes.fold._stream_factors import Factors, ObstacleError
from flowopt.passes.fold._stream_layers import Kind, kind_of

# Of a dtype's range of exponents. What is left is for the values themselves: up to 2^38 in float32.
_SHARE: Final = 0.7
# Exponents that are left at least: in float16 the scales take 2^-4 to 2^4, values of 2^-10 to 2^12 stay normal numbers.
_FOR_VALUES: Final = 10.0
# A reach below which values of a stream get near its ends: float16's.
_SHORT: Final = 32.0


def start_of(stream: AffineStream, found: Factors, readers: Readers) -> tuple[fx.Node, bool]:
    """The value whose scale is one, and whether another scale would do as well.

    Raises:
        ObstacleError: values that cannot be scaled are tied to different scales.
    """
    computed = [node for node in stream.writers if kind_of(node, stream.axes[node]) is Kind.COMPUTED]
    group = found.group
    for node in computed[1:]:
        if group[node] is not group[computed[0]]:
            message = f"{node.name} ({node.target}) and {computed[0].name} are no layers, and are scaled differently"
            raise ObstacleError("not-linear-writer", message, node)
    fixed = computed[:1] or [value for _, value in readers.taps][:1]
    for node, value in readers.taps:
        if group[value] is not group[fixed[0]]:
            what = "is an output of the model" if node.op == "output" else f"is read by {described(node)}"
            message = f"{value.name}, of the stream, {what}, and is scaled otherwise than {fixed[0].name} must be"
            raise ObstacleError("stream-tapped", message, value if node.op == "output" else node)
    if fixed:
        return fixed[0], False
    most = Counter(group[value] for value in dict.fromkeys(value for _, value in readers.norms)).most_common(1)
    return (most[0][0], False) if most else (next(iter(stream.axes)), True)


def exponents_of(stream: AffineStream, found: Factors, start: fx.Node, *, is_free: bool) -> tuple[int, ...]:
    """Powers of two, one for every channel, that keep all scales in range; empty where none is needed.

    In float16 they always centre the scales, as exactly as powers of two can: what is spared is room for the values.

    Args:
        stream: the stream.
        found: its scales.
        start: the value whose scale they are.
        is_free: whether it may have another scale than one.

    Raises:
        ObstacleError: scales leave the range of the narrowest dtype of the stream.
    """
    limits = min((torch.finfo(dtype) for dtype in _dtypes(stream)), key=_reach)
    allowed = min(_SHARE * _reach(limits), _reach(limits) - _FOR_VALUES)
    reached = torch.stack([(factor / found.of(start)).abs().log2() for factor in found.factor.values()])
    low, high = reached.amin(0), reached.amax(0)
    fits = max(float(-low.min()), float(high.max())) <= allowed
    if fits and not (is_free and _reach(limits) < _SHORT):
        return ()
    exponents = torch.round(-(low + high) / 2) if is_free else torch.zeros_like(low)
    worst = max(float(-(low + exponents).min()), float((high + exponents).max()))
    if worst <= allowed:
        return tuple(int(e) for e in exponents) if bool(exponents.any()) else ()
    message = f"a channel's scale would reach 2^{worst:.0f} or its inverse; {limits.dtype} takes 2^{allowed:.0f}"
    raise ObstacleError("extreme-scale", message)


def unshifted_steps(stream: AffineStream, constant: Callable[[fx.Node], Tensor]) -> tuple[fx.Node, ...]:
    """The values of those steps whose shift is zero in every channel."""
    shifts = ((value, scale_and_shift(step, constant, stream.size)[1]) for value, step in stream.steps.items())
    return tuple(value for value, shift in shifts if shift is not None and not bool(shift.any()))


def growth(found: Rescaled, constant: Callable[[fx.Node], Tensor]) -> int:
    """Bytes by which the model grows: tensors that are read elsewhere too are copied.

    Raises:
        ObstacleError: a parameter would overflow its dtype, or lose digits that it has.
    """
    old: list[fx.Node] = []
    users: list[fx.Node] = []
    added = 0
    for user, node, new, before in replaced_tensors(found, constant):
        recorded = recorded_tensor(user if node is None else node)
        assert recorded is not None  # it is an operator or a stored tensor
        reason = _out_of_range(new, before, torch.finfo(recorded.dtype))
        if reason is not None:
            raise ObstacleError("extreme-scale", f"parameters of {user.name} would {reason}", user)
        added += new.numel() * recorded.element_size()
        users.append(user)
        old += [] if node is None else [node]
    return added - freed_bytes(old, users) if old else added


def _out_of_range(new: Tensor, old: Tensor | None, limits: torch.finfo) -> str | None:
    if not bool((new.abs() <= limits.max).all()):
        return f"exceed {limits.max:.3g}"
    if old is not None and loses_digits(new, old, limits):
        return f"be below {limits.tiny:.3g} and lose digits"
    return None


def described(node: fx.Node) -> str:
    """A node for people: name, operator and module."""
    path = module_path(node)
    return f"{node.name} ({node.target}{f' in {path}' if path else ''})"


def _dtypes(stream: AffineStream) -> Iterable[torch.dtype]:
    return {recorded.dtype for node in stream.axes if (recorded := recorded_tensor(node)) is not None}


def _reach(limits: torch.finfo) -> float:
    """The exponent, positive or negative, up to which every number is normal."""
    return min(log2(limits.max), -log2(limits.tiny))
