"""Kernels that are sums of powers, found in a graph: what a diagonal state space convolves with.

    K[h, l] = Re sum_n gains[h, n] poles[h, n]^l

Such a kernel is a function of the positions 0, 1, .. that takes each position by itself: that of a shorter sequence
is the beginning of that of a longer one. What a graph computes of its powers (a product with C, a sum over states, a
real part) is not read but tried: it is evaluated with other powers and other positions, in float64, and has to be this
sum for all of them. A kernel that is divided by a sum over positions, as that of DSS, is none.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from flowopt.ir.constants import needed_nodes, node_values
from flowopt.ir.evaluate import RUN_ERRORS
from flowopt.ir.metadata import recorded_tensor
from flowopt.ops.ssm.diagonal_system import DiagonalSystem

_aten = torch.ops.aten
_POWERS = (_aten.exp.default, _aten.pow.Tensor_Tensor, _aten.pow.Scalar)
# What reads sizes and does not compute with them.
_SHAPED = (_aten.view.default, _aten.reshape.default, _aten._unsafe_view.default, _aten.expand.default)
# Some that follow each other, and some far away.
_TRIED = (0, 1, 2, 3, 4, 7, 20, 101)
_RANDOM = (5, 9)
_AGREEMENT = 1e-9


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


def exponential_kernel(kernel: fx.Node, axis: int, read: Callable[[str], Tensor]) -> ExponentialKernel | None:
    """The kernel's powers; None where it is no sum of powers, or is computed of anything but stored tensors and them.

    Args:
        kernel: a node with channels and positions.
        axis: of positions, counted from the first.
        read: the stored tensor of a name, in float64.
    """
    for positions, powers in _candidates(kernel):
        power_axis = _power_axis(powers, positions, read)
        if power_axis is None:
            continue
        for has_states_first in (False, True):
            found = ExponentialKernel(kernel, powers, positions, axis, power_axis, has_states_first)
            if diagonal_system(found, read) is not None:
                return found
    return None


def diagonal_system(found: ExponentialKernel, read: Callable[[str], Tensor]) -> DiagonalSystem | None:
    """Poles and gains in float64; None where the kernel is not their sum for all powers that are tried."""
    poles = _as_rows(found, _powers_at(found.powers, found.positions, (1,), read))[..., 0]
    try:
        gains, other = (_gains(found, poles, count, read) for count in _RANDOM)
    except RUN_ERRORS:
        return None
    # One by one, they may be divided by what all the powers that were tried add up to.
    if gains is None or other is None or not _agree(other, gains):
        return None
    return DiagonalSystem(poles.expand_as(gains).contiguous(), gains)


def _gains(found: ExponentialKernel, poles: Tensor, count: int, read: Callable[[str], Tensor]) -> Tensor | None:
    """What a kernel makes of 1 and i in the place of each power, if it does so with ``count`` random numbers too."""
    channels, states = poles.shape
    generator = torch.Generator().manual_seed(count)
    tried = torch.randn(channels, states, count, 2, generator=generator, dtype=torch.float64)
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


def _power_axis(powers: fx.Node, positions: fx.Node, read: Callable[[str], Tensor]) -> int | None:
    """The axis along which a node holds the powers of its own values at 1; None where it holds anything else."""
    try:
        made = _powers_at(powers, positions, _TRIED, read)
        fewer = _powers_at(powers, positions, _TRIED[:3], read)
    except RUN_ERRORS:
        return None
    changed = [at for at, (a, b) in enumerate(zip(made.shape, fewer.shape, strict=True)) if a != b]
    if len(changed) != 1 or any(size != 1 for size in _without(made.shape, changed[0])[:-2]):
        return None
    along = made.movedim(changed[0], -1)
    wanted = along[..., 1:2].pow(torch.tensor(_TRIED, device=along.device))
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
