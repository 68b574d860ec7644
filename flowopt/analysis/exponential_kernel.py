"""Kernels that are sums of powers, found in a graph: what a diagonal state space convolves with.

    K[h, l] = Re sum_n gains[h, n] poles[h, n]^l

Such a kernel is a function of the positions 0, 1, .. that takes each position by itself: that of a shorter sequence
is the beginning of that of a longer one. What a graph computes of its powers (a product with C, a sum over states, a
real part) is not read but tried: it is evaluated with other powers and other positions, in float64, and has to be this
sum for all of them. Then the kernel itself is, as long as it can be: no few positions show a cut or a period. A kernel
that is divided by a sum over positions, as that of DSS, is none.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, fx

from flowopt.ir.constants import needed_nodes, node_values
from flowopt.ir.evaluate import RUN_ERRORS
from flowopt.ir.metadata import recorded_tensor
from flowopt.ops.ssm.diagonal_system import DiagonalSystem, kernel_of

_aten = torch.ops.aten
_POWERS = (_aten.exp.default, _aten.pow.Tensor_Tensor, _aten.pow.Scalar)
# What reads sizes and does not compute with them.
_SHAPED = (_aten.view.default, _aten.reshape.default, _aten._unsafe_view.default, _aten.expand.default)
# Some that follow each other, and some far away.
_TRIED = (0, 1, 2, 3, 4, 7, 20, 101)
# Beyond what is asked for, a power may have no value.
_TRIED_FAR = (127, 128, 1023, 4097)
# How many numbers, and of which size: what clamps or drops values is none of a sum.
_RANDOM = ((5, 1.0), (9, 1.0), (3, 2.0**-60), (3, 2.0**60))
_AGREEMENT = 1e-9
# Positions at which a kernel of any length is evaluated, and bytes that its powers may take for more.
_LONG: Final = 4096
_MOST_BYTES: Final = 1 << 28
_NO_END: Final = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class ExponentialKernel:
    """Where a graph computes the powers that a kernel is a sum of.

    Attributes:
        kernel: the node, with positions along ``axis``; its other axes are those of channels.
        powers: poles to the power of positions.
        positions: the ``arange`` that they are computed from.
        axis: of positions in ``kernel``, counted from the first.
        power_axis: of positions in ``powers``.
        has_states_first: whether the axis of states in ``powers`` stands before that of channels.
    """

    kernel: fx.Node
    powers: fx.Node
    positions: fx.Node
    axis: int
    power_axis: int
    has_states_first: bool


def exponential_kernel(
    kernel: fx.Node, axis: int, read: Callable[[str], Tensor], *, longest: int | None = None
) -> ExponentialKernel | None:
    """The kernel's powers; None where it is no sum of powers, or is computed of anything but stored tensors and them.

    Args:
        kernel: a node with channels and positions.
        axis: of positions, counted from the first.
        read: the stored tensor of a name, in float64.
        longest: positions that a kernel of a free length can have; None: any number. It is evaluated at no more than
            4096 where that takes much memory; then no number in its graph may be larger.
    """
    recorded = recorded_tensor(kernel)
    taps = None if recorded is None else recorded.shape[axis]
    length = taps if isinstance(taps, int) else longest
    for positions, powers in _candidates(kernel):
        power_axis = _power_axis(powers, positions, length, read)
        if power_axis is None:
            continue
        for has_states_first in (False, True):
            found = ExponentialKernel(kernel, powers, positions, axis, power_axis, has_states_first)
            system = diagonal_system(found, read)
            if system is not None and _is_kernel_of(found, system, length, read):
                return found
    return None


def diagonal_system(found: ExponentialKernel, read: Callable[[str], Tensor]) -> DiagonalSystem | None:
    """Poles and gains in float64; None where the kernel is not their sum for all powers that are tried."""
    poles = _as_rows(found, _powers_at(found.powers, found.positions, (1,), read))[..., 0]
    try:
        gains, *others = (_gains(found, poles, count, size, read) for count, size in _RANDOM)
    except RUN_ERRORS:
        return None
    # One by one, they may be divided by what all the powers that were tried add up to.
    if gains is None or not all(other is not None and _agree(other, gains) for other in others):
        return None
    return DiagonalSystem(poles.expand_as(gains).contiguous(), gains)


def _is_kernel_of(
    found: ExponentialKernel, system: DiagonalSystem, longest: int | None, read: Callable[[str], Tensor]
) -> bool:
    """Whether the graph's own kernel is that of a system, as far as it is evaluated."""
    fits = max(_LONG, _MOST_BYTES // (system.poles.numel() * system.poles.itemsize))
    length = _LONG if longest is None else min(longest, fits)
    if length != longest and any(n > length for n in _numbers(found, read)):
        return False
    recorded = recorded_tensor(found.positions)
    assert recorded is not None  # candidates are recorded
    dtype = torch.float64 if recorded.dtype.is_floating_point else recorded.dtype
    try:
        made = _value(found.kernel, found.positions, torch.arange(length, dtype=dtype), length, read)
    except RUN_ERRORS:
        return False
    if made.is_complex() or made.shape[found.axis] != length:
        return False
    return _agree(made.movedim(found.axis, -1).reshape(-1, length), kernel_of(system, length))


def _numbers(found: ExponentialKernel, read: Callable[[str], Tensor]) -> Iterator[float]:
    """Numbers that a kernel's graph may compare positions with; sizes are none."""
    inside = needed_nodes([found.kernel], {found.positions})
    for node in inside:
        if node.op == "get_attr":
            stored = read(str(node.target))
            if stored.numel() == 1 or not (stored.is_floating_point() or stored.is_complex()):
                yield float(stored.abs().max()) if stored.numel() else 0.0
        elif node.target not in _SHAPED and node.op == "call_function":
            yield from _numbers_in((*node.args, *node.kwargs.values()))


def _numbers_in(arguments: Iterable[object]) -> Iterator[float]:
    for one in arguments:
        if isinstance(one, (list, tuple)):
            yield from _numbers_in(one)
        elif isinstance(one, (int, float)) and one != _NO_END:
            yield abs(one)


def _gains(
    found: ExponentialKernel, poles: Tensor, count: int, size: float, read: Callable[[str], Tensor]
) -> Tensor | None:
    """What a kernel makes of 1 and i in the place of each power, if it does so with ``count`` random numbers too."""
    channels, states = poles.shape
    generator = torch.Generator().manual_seed(count)
    tried = size * torch.randn(channels, states, count, 2, generator=generator, dtype=torch.float64)
    unit = torch.eye(states, dtype=torch.complex128).expand(channels, states, states)
    probe = torch.cat([unit, 1j * unit, torch.view_as_complex(tried)], -1).to(poles.device)
    made = _value(found.kernel, found.powers, _as_powers(found, probe), probe.shape[-1], read)
    if made.is_complex() or made.dim() <= found.axis or made.shape[found.axis] != probe.shape[-1]:
        return None
    rows = made.movedim(found.axis, -1).reshape(-1, probe.shape[-1])
    if channels not in (1, len(rows)):
        return None
    gains = torch.complex(rows[:, :states], -rows[:, states : 2 * states])
    wanted = (gains[..., None] * probe[..., 2 * states :]).sum(1).real
    return gains if _agree(rows[:, 2 * states :], wanted) else None


def _candidates(kernel: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Counts from 0, and complex powers that may be computed of them; the last ones first."""
    inside = sorted(needed_nodes([kernel], ()))
    for positions in filter(_counts_from_zero, inside):
        if not _takes_sizes_as_shapes(needed_nodes([kernel], {positions})):
            continue
        for node in reversed(inside):
            value = recorded_tensor(node)
            is_complex = value is not None and value.is_complex() and value.dim() >= 3
            if node.target in _POWERS and is_complex and positions in needed_nodes([node], ()):
                yield positions, node


def _counts_from_zero(node: fx.Node) -> bool:
    if node.target is _aten.arange.default:
        return True
    steps = node.args[2:] == () or node.args[2:] == (1,)
    return steps and node.target in (_aten.arange.start, _aten.arange.start_step) and node.args[0] in (0,)


def _takes_sizes_as_shapes(inside: set[fx.Node]) -> bool:
    """Whether nothing is computed of inputs but shapes: a kernel that is divided by its length is no sum of powers."""
    for node in inside:
        if _is_size(node):
            continue
        if node.op == "placeholder" and not all(_is_size(user) for user in node.users if user in inside):
            return False
        if node.op != "placeholder" and node.target not in _SHAPED and any(map(_is_size, node.all_input_nodes)):
            return False
    return True


def _is_size(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), (int, torch.SymInt))


def _power_axis(powers: fx.Node, positions: fx.Node, length: int | None, read: Callable[[str], Tensor]) -> int | None:
    """The axis along which a node holds the powers of its own values at 1; None where it holds anything else."""
    tried = (*_TRIED, *(at for at in _TRIED_FAR if length is None or at < length))
    try:
        made = _powers_at(powers, positions, tried, read)
        fewer = _powers_at(powers, positions, _TRIED[:3], read)
    except RUN_ERRORS:
        return None
    changed = [at for at, (a, b) in enumerate(zip(made.shape, fewer.shape, strict=True)) if a != b]
    if len(changed) != 1 or any(size != 1 for size in _without(made.shape, changed[0])[:-2]):
        return None
    along = made.movedim(changed[0], -1)
    wanted = along[..., 1:2].pow(torch.tensor(tried, device=along.device))
    # An infinite or vanishing pole has no powers to compare.
    return changed[0] if _agree(along, wanted) else None


def _without(shape: torch.Size, axis: int) -> tuple[int, ...]:
    return tuple(size for at, size in enumerate(shape) if at != axis)


def _agree(made: Tensor, wanted: Tensor) -> bool:
    scale = wanted.abs().amax(-1, keepdim=True)
    return bool(((made - wanted).abs() <= _AGREEMENT * scale).all())


def _as_rows(found: ExponentialKernel, powers: Tensor) -> Tensor:
    """(channels, states, positions)."""
    along = powers.movedim(found.power_axis, -1)
    rows = along.reshape(along.shape[-3:])
    return rows.transpose(0, 1) if found.has_states_first else rows


def _as_powers(found: ExponentialKernel, rows: Tensor) -> Tensor:
    ordered = rows.transpose(0, 1) if found.has_states_first else rows
    shape = recorded_tensor(found.powers)
    assert shape is not None  # or else it is no candidate
    return ordered.reshape([1] * (shape.dim() - 3) + list(ordered.shape)).movedim(-1, found.power_axis)


def _value(node: fx.Node, given: fx.Node, value: Tensor, count: int, read: Callable[[str], Tensor]) -> Tensor:
    """A node's value with another one, of ``count`` positions, put in the place of ``given``."""
    recorded = recorded_tensor(given)
    assert recorded is not None  # candidates are recorded
    # The only size that is free in a kernel for each channel is that of its positions.
    sizes = {n: count for n in needed_nodes([node], {given}) if n.target is _aten.sym_size.int}
    made = node_values((node,), read, {given: value.to(recorded.device), **sizes}, raised=True)[node]
    assert isinstance(made, Tensor)  # operators between have one result
    return made


def _powers_at(powers: fx.Node, positions: fx.Node, tried: tuple[int, ...], read: Callable[[str], Tensor]) -> Tensor:
    recorded = recorded_tensor(positions)
    assert recorded is not None  # candidates are recorded
    # Counted as integers, or in the dtype that the graph counts in, raised.
    dtype = torch.float64 if recorded.dtype.is_floating_point else recorded.dtype
    return _value(powers, positions, torch.tensor(tried, dtype=dtype), len(tried), read)
