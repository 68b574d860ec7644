"""Read a mask where it lies instead of gathering it by position, and drop conditions that always hold.

    index(mask, [arange(B)[:, None], arange(S)[None, :]])   ->  mask                moved to the axes of the positions
    (arange(S) >= 0) & x,  ones & x                         ->  x                   expanded where that is smaller

Masks are written as conditions on grids of positions, one for each axis. Export keeps the grids, and a runtime then
builds them, compares them and gathers through them at every call.

Numerical effect: BITWISE. No number is computed.

Refuses when:
    axis-mismatch           positions do not count all of their axis from 0, two of them count along one axis, or the
                            result has an axis of other sizes: the gathering moves or repeats elements
    graph-output            the result is an output of the model, whose memory is not to be shared with what it reads

A site is a gathering through positions alone, or a conjunction of which one side always holds.

Attributes of the matched operators:
    index: all indices used; an index of None or of truth values is no position. arange: start, end, step used; dtype
    checked to be whole numbers. __and__, bitwise_and, logical_and: dtype checked to be bool.
    Before them, in ``flowopt.analysis.positions``: add, sub of a whole number, alpha checked to be 1; ge, gt, ne: the
    number used; ones, full and their like: what they are filled with used; moves: axes used.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from flowopt.analysis.positions import ANDS, Positions, always_holds, positions
from flowopt.ir.metadata import recorded_tensor, sizes_as_text, static_size
from flowopt.program.program import Program
from flowopt.rewrite import Edit, Exactness, RewritePass, Site

_aten = torch.ops.aten
_index = _aten.index.Tensor


@dataclass(frozen=True, slots=True)
class Moved:
    """Read ``source`` in another order of axes, with axes of one element between them.

    Attributes:
        source: what is gathered.
        order: of its axes.
        new_axes: of the result, in ascending order, that the source does not have.
    """

    source: fx.Node
    order: tuple[int, ...]
    new_axes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Kept:
    """Read ``side`` of a conjunction alone; ``sizes`` of the result that it does not have, from which operand."""

    side: fx.Node
    sizes: tuple[int | tuple[fx.Node, int], ...] | None


class SimplifyMasks(RewritePass[Moved | Kept]):
    """Read a mask where it lies instead of gathering it by position, and drop conditions that always hold."""

    exactness: ClassVar[Exactness] = Exactness.BITWISE
    anchors: ClassVar[tuple[Any, ...]] = (_index, *ANDS)

    def sites(self, program: Program) -> list[fx.Node]:
        """Gathering through positions alone, and conjunctions of which one side always holds."""
        return [
            n
            for n in super().sites(program)
            if (_indices(n) is not None if n.target is _index else _kept_side(n, program) is not None)
        ]

    def check(self, site: Site) -> Moved | Kept:
        node = site.node
        outputs = site.program.graph.output_node().all_input_nodes
        site.require(node not in outputs, "graph-output", f"{node.name} is an output of the model")
        if node.target is _index:
            return _moved(site)
        side = _kept_side(node, site.program)
        assert side is not None  # no rewrite at another site makes a condition fail
        return Kept(side, _sizes(node, side))

    def rewrite(self, edit: Edit, plan: Moved | Kept) -> str:
        if isinstance(plan, Kept):
            new = plan.side
            if plan.sizes is not None:
                sizes = [s if isinstance(s, int) else edit.call(_aten.sym_size.int, *s) for s in plan.sizes]
                new = edit.call(_aten.expand.default, new, sizes)
            edit.replace(edit.anchor, new)
            return f"{plan.side.name} alone: the other side always holds"
        new = plan.source
        if list(plan.order) != sorted(plan.order):
            new = edit.call(_aten.permute.default, new, list(plan.order))
        for axis in plan.new_axes:
            new = edit.call(_aten.unsqueeze.default, new, axis)
        edit.replace(edit.anchor, new)
        return f"{plan.source.name} is gathered where it lies"


def _indices(node: fx.Node) -> list[Positions] | None:
    """Positions by which a node gathers, counted along the axes of all indices together; None: it gathers otherwise."""
    indices = node.args[1]
    assert isinstance(indices, (list, tuple))
    rank = max((len(sizes_as_text(i)) for i in indices), default=0)
    found = []
    for index in indices:
        counted = positions(index)
        if counted is None:
            return None
        found.append(Positions(counted.axis + rank - len(sizes_as_text(index)), counted.start))
    return found


def _moved(site: Site) -> Moved:
    node = site.node
    source, indices = node.args[:2]
    counted = _indices(node)
    assert counted is not None and isinstance(source, fx.Node) and isinstance(indices, (list, tuple))
    sizes, result = sizes_as_text(source), sizes_as_text(node)
    rank = len(result) - (len(sizes) - len(counted))
    for axis, (index, found) in enumerate(zip(indices, counted, strict=True)):
        counts = sizes_as_text(index)[found.axis - rank]
        is_whole = found.start == 0 and result[found.axis] == sizes[axis] == counts
        message = f"{index} does not count axis {axis} of {source.name} from its start to its end"
        site.require(is_whole, "axis-mismatch", message, index)
    axes = [found.axis for found in counted]
    site.require(len(set(axes)) == len(axes), "axis-mismatch", "two indices count along one axis")
    others = tuple(axis for axis in range(rank) if axis not in axes)
    is_plain = all(result[axis] == "1" for axis in others)
    site.require(is_plain, "axis-mismatch", f"{node.name} repeats elements of {source.name}")
    first = sorted(range(len(counted)), key=axes.__getitem__)
    return Moved(source, (*first, *range(len(counted), len(sizes))), others)


def _kept_side(node: fx.Node, program: Program) -> fx.Node | None:
    """The side that decides a conjunction; None where both do, or it is one of bits."""
    value = recorded_tensor(node)
    if value is None or value.dtype != torch.bool:
        return None
    for side, other in (node.args[:2], node.args[1::-1]):
        recorded = recorded_tensor(side)
        is_condition = recorded is not None and recorded.dtype == torch.bool
        if is_condition and isinstance(side, fx.Node) and always_holds(other, program.constant):
            return side
    return None


def _sizes(node: fx.Node, side: fx.Node) -> tuple[int | tuple[fx.Node, int], ...] | None:
    """The sizes of a conjunction, and for a free one who has it; None where its side has them all."""
    result = sizes_as_text(node)
    if sizes_as_text(side) == result:
        return None
    found: list[int | tuple[fx.Node, int]] = []
    for axis, text in enumerate(result):
        size = static_size(node, axis)
        if size is not None:
            found.append(size)
            continue
        back = axis - len(result)
        operands = [a for a in node.args[:2] if isinstance(a, fx.Node) and len(sizes_as_text(a)) >= -back]
        owner = next(a for a in operands if sizes_as_text(a)[back] == text)
        found.append((owner, back + len(sizes_as_text(owner))))
    return tuple(found)
