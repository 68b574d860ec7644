"""Decide how each operator of a causal model computes one token."""

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import fx

from flowopt.analysis.row_wise import row_wise
from flowopt.analysis.rows import Path, Place, Rows, RowWise, argument, axes_of, rank_of
from flowopt.errors import UserError
from flowopt.ir.metadata import recorded_tensor, sizes_as_text, source_line
from flowopt.program.program import Dim, Program
from flowopt.recurrence.causal_sums import CausalSum, causal_sum
from flowopt.recurrence.state_spaces import StateSpace, state_spaces

_aten = torch.ops.aten
_ARANGES: Final = {_aten.arange.default, _aten.arange.start, _aten.arange.start_step}
_FACTORIES: Final = {_aten.full.default, _aten.zeros.default, _aten.ones.default}
_PADS: Final = {_aten.constant_pad_nd.default, _aten.pad.default}
_PRODUCTS: Final = {_aten.matmul.default, _aten.bmm.default, _aten.mm.default}
_CONVOLUTIONS: Final = {_aten.convolution.default, _aten.conv1d.default}
# What they work along is said by their second argument.
_ALONG_AXES: Final = {
    *(_aten.flip.default, _aten.cumsum.default, _aten.cumprod.default, _aten.logcumsumexp.default),
    *(_aten.softmax.int, _aten._softmax.default, _aten.log_softmax.int, _aten._log_softmax.default),
}
_ATTENTION: Final = _aten.scaled_dot_product_attention.default


@dataclass(frozen=True, slots=True)
class Token:
    """An input of which one token is given."""


@dataclass(frozen=True, slots=True)
class Positions:
    """Numbers that count tokens: start + step * position."""

    start: int
    step: int


@dataclass(frozen=True, slots=True)
class Filled:
    """One number for every token, in a tensor of these sizes."""

    sizes: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Lookup:
    """Rows of a value that is no token's, by position: those from ``start`` on."""

    source: fx.Node
    start: int


@dataclass(frozen=True, slots=True)
class RunningSum:
    """The sum of all tokens up to this one."""


@dataclass(frozen=True, slots=True)
class Delay:
    """The token that came ``tokens`` before."""

    tokens: int


How = Token | Positions | Filled | Lookup | RunningSum | Delay | CausalSum | StateSpace | RowWise


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """A node, where the token is in its value, how it is computed, and the values that it takes one token of."""

    node: fx.Node
    place: Place
    how: How
    reads: tuple[tuple[Path, fx.Node, Place], ...]


def planned_steps(program: Program, dim: Dim) -> tuple[PlannedStep, ...]:
    """What computes one token of every output, in graph order.

    Raises:
        UserError: an output without tokens, or an operator that needs more of other tokens than a sum can carry.
    """
    wanted = dict(_outputs(program, dim))
    spaces, no_spaces = state_spaces(program)
    steps: list[PlannedStep] = []
    for node in reversed(list(program.graph.nodes)):
        if node not in wanted:
            continue
        place = wanted[node]
        space = spaces.get(node)
        if space is not None and place == Place(space.axis):
            step = PlannedStep(node, place, space, (((0,), space.source, place),))
        else:
            step = _planned(program, node, place, dim, no_spaces.get(node))
        steps.append(step)
        for _, source, at in step.reads:
            if wanted.setdefault(source, at) != at:
                raise _refused(source, f"it is read with its tokens on axis {at.axis}, and on {wanted[source].axis}")
        _require_no_other_tokens(step, dim, no_spaces)
    return (*_unread_tokens(program, dim, wanted), *reversed(steps))


def _unread_tokens(program: Program, dim: Dim, wanted: Container[fx.Node]) -> Iterator[PlannedStep]:
    """Inputs that a caller gives token by token too, though no output needs them."""
    for node in program.graph.find_nodes(op="placeholder"):
        if node in wanted or not _is_the_length(node, dim):
            continue
        axes = [axis for axis, size in enumerate(sizes_as_text(node)) if size == dim.symbol]
        if len(axes) != 1:
            raise _refused(node, f"it is an input with {len(axes)} axes of {dim.name!r}: no token of it could be given")
        yield PlannedStep(node, Place(axes[0]), Token(), ())


def _outputs(program: Program, dim: Dim) -> Iterator[tuple[fx.Node, Place]]:
    returned: Any = program.graph.output_node().args[0]
    for output, node in zip(program.outputs, returned, strict=True):
        axes = [axis for axis, size in enumerate(sizes_as_text(node)) if size == dim.symbol]
        if output.state is not None or len(axes) != 1:
            raise UserError(
                f"output {output.name!r} has {len(axes)} axes of {dim.name!r}: no token of it could be given",
                why="a step gives one token of every output",
                hint="a model that returns a value for each token, without pooling",
            )
        yield node, Place(axes[0])


def _planned(program: Program, node: fx.Node, place: Place, dim: Dim, no_space: str | None) -> PlannedStep:
    if node.op == "placeholder":
        return PlannedStep(node, place, Token(), ())
    special = _special(program, node, place, dim) if place.stands_alone else None
    if special is not None:
        how, sources = special
        return PlannedStep(node, place, how, tuple(((at,), source, to) for at, (source, to) in enumerate(sources)))
    found = row_wise(node, place, Rows(_length(program, dim), 1)) if node.op == "call_function" else None
    if found is None:
        raise _refused(node, no_space or _why(node, place))
    return PlannedStep(node, place, found, tuple((r.path, r.source, r.place) for r in found.reads))


def _length(program: Program, dim: Dim) -> Any:
    """The expression of the free length; a symbol made here would carry other assumptions, and equal none."""
    values = (recorded_tensor(node) for node in program.graph.nodes)
    sizes = (size for value in values if value is not None for size in value.shape)
    symbols: list[Any] = [s for s in sizes if isinstance(s, torch.SymInt)]
    return next(s.node.expr for s in symbols if str(s.node.expr) == dim.symbol)


def _special(
    program: Program, node: fx.Node, place: Place, dim: Dim
) -> tuple[How, tuple[tuple[fx.Node, Place], ...]] | None:
    target, args = node.target, node.args
    source: Any = args[0] if args else None
    if target in _ARANGES:
        return _positions(node)
    if target in _FACTORIES:
        sizes = list(args[0])  # type: ignore[arg-type]  # sizes are a list
        sizes[place.axis] = 1
        return Filled(tuple(sizes)), ()
    if target is _aten.cumsum.default and axes_of(args[1], rank_of(node)) == [place.axis]:
        return RunningSum(), ((source, place),)
    if target is _aten.slice.Tensor and args[1] % rank_of(node) == place.axis:  # type: ignore[operator]  # an axis is an int
        return _lookup(node, source, place, dim)
    if target in _PADS:
        return _delay(node, source, place)
    found = causal_sum(node, dim, program.read)
    if found is None:
        return None
    last = rank_of(found.key) - 1
    reads = [(found.query, Place(rank_of(found.query) - 2)), (found.key, Place(last))]
    if found.value is not None:
        reads.append((found.value, Place(rank_of(found.value) - 2)))
    return found, tuple(reads)


def _positions(node: fx.Node) -> tuple[How, tuple[()]] | None:
    start, step = (node.args[0], 1) if node.target is not _aten.arange.default else (0, 1)
    if node.target is _aten.arange.start_step and len(node.args) > 2:
        step = node.args[2]  # type: ignore[assignment]  # checked below
    return (Positions(start, step), ()) if isinstance(start, int) and isinstance(step, int) else None


def _lookup(node: fx.Node, source: fx.Node, place: Place, dim: Dim) -> tuple[How, tuple[()]] | None:
    start, step = argument(node, 2, 0, "start") or 0, argument(node, 4, 1, "step")
    is_whole = isinstance(start, int) and start >= 0 and step == 1
    has_tokens = dim.symbol in sizes_as_text(source)
    return (Lookup(source, start), ()) if is_whole and not has_tokens else None


def _delay(node: fx.Node, source: fx.Node, place: Place) -> tuple[How, tuple[tuple[fx.Node, Place], ...]] | None:
    """A pad by some tokens in front that cuts off as many behind."""
    pads: Any = list(node.args[1])  # type: ignore[arg-type]  # pads are a list
    at = 2 * (rank_of(node) - 1 - place.axis)
    is_plain = node.target is _aten.constant_pad_nd.default
    value = argument(node, 2, 0, "value") if is_plain else argument(node, 3, None, "value") or 0
    mode = "constant" if is_plain else argument(node, 2, "constant", "mode")
    if at + 2 > len(pads) or value != 0 or mode != "constant":
        return None
    front, behind = pads[at : at + 2]
    others = pads[:at] + pads[at + 2 :]
    is_shift = isinstance(front, int) and front > 0 and behind == -front and not any(others)
    return (Delay(front), ((source, place),)) if is_shift else None


def _require_no_other_tokens(step: PlannedStep, dim: Dim, no_spaces: Mapping[fx.Node, str]) -> None:
    """What is not read token by token must be the same for all of them, and must not know how many there are."""
    others: list[fx.Node] = []
    if isinstance(step.how, Lookup):
        others.append(step.how.source)
    elif isinstance(step.how, Filled):
        fx.map_arg((step.how.sizes, step.node.args[1:], step.node.kwargs), others.append)
    elif isinstance(step.how, RowWise):
        sized: list[fx.Node] = []
        if step.how.sizes is not None:
            # Sizes of the whole are replaced by those of one token, in which it may not be on another axis.
            fx.map_arg(step.node.args[1], sized.append)
            fx.map_arg(step.how.sizes, others.append)
        read = {source for _, source, _ in step.reads}
        others += [n for n in step.node.all_input_nodes if n not in read and n not in sized]
    else:
        return
    for other in others:
        if _knows_tokens(other, dim):
            if other in no_spaces:
                raise _refused(other, no_spaces[other])
            raise _refused(step.node, f"it reads {other.name}, which depends on all tokens or on how many there are")


def _knows_tokens(node: fx.Node, dim: Dim) -> bool:
    pending, seen = [node], set[fx.Node]()
    while pending:
        current = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        if _is_the_length(current, dim):
            return True
        # The size of a batch is read from tokens, of which it tells nothing else.
        if current.target is not _aten.sym_size.int:
            pending.extend(current.all_input_nodes)
    return False


def _is_the_length(node: fx.Node, dim: Dim) -> bool:
    value = node.meta.get("val")
    tensor = recorded_tensor(node)
    sizes = [value] if isinstance(value, torch.SymInt) else [] if tensor is None else tensor.shape
    free = (s for size in sizes if isinstance(size, torch.SymInt) for s in size.node.expr.free_symbols)
    return dim.symbol in map(str, free)


def _why(node: fx.Node, place: Place) -> str:
    if node.target is _ATTENTION:
        return "softmax attention needs all tokens before it, and no sum carries them"
    if node.op != "call_function":
        return "it is stored for a fixed number of tokens"
    named = axes_of(argument(node, 1, None), rank_of(node)) if node.target in _ALONG_AXES else []
    kernel = sizes_as_text(node.args[1])[2:] if node.target in _CONVOLUTIONS else ()
    is_mixing = node.target in _PRODUCTS or place.axis in named or any(size != "1" for size in kernel)
    if is_mixing:
        return "it mixes tokens in a way that is no running sum"
    return "it is not known to work on tokens one by one"


def _refused(node: fx.Node, why: str) -> UserError:
    where = source_line(node)
    return UserError(
        f"{node.name} ({node.target}) cannot go token by token: {why}",
        why=f"it stands at {where}" if where else "",
        hint="linear attention (flowopt adapt --linearize), running sums, lookups by position and operators on tokens "
        "alone can; attention of flowopt.ops in its parallel form",
    )
