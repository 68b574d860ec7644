"""Compute the rows alone that a selection picks.

    select(mlp(norm(a + b)), 1, 0)  =  select(mlp(norm(slice(a, 1, 0, 1) + slice(b, 1, 0, 1))), 1, 0)

A classifier reads one token of the last hidden state, but the last block computes its queries, attention, projections,
norms and feed-forward network for all of them. The selection moves up through every operator that works on each row
along its axis alone, as far as nobody reads other rows; keys and values are still computed of all tokens. The axis is
followed through transposes and reshapes, also where it is merged with others.

Numerical effect: EXACT. A product of fewer rows may add in another order.

A site is a selection with constant bounds that row-wise operators lead from to a product, a norm or attention: most
others, of inputs, stored tensors, and parts of packed features, have nothing to move through.

Refuses when:
    multiple-readers        an operator before the selection would compute fewer rows, but is read elsewhere too
    graph-output            the same, where it is an output of the model
    no-gain                 no product, norm or attention would compute fewer rows, as those that they are read for
                            are along two axes; or more than ``largest_part`` of the rows are selected

Selections of the same rows from several of the operators move together, and all but one are reported as already
rewritten.

Attributes of the matched operators:
    select: dim, index used; index checked to be constant. slice: dim, start, end used; start, end checked to be
    constant, step to be 1, the length to be known at capture.
    Before it, the operators of ``flowopt.analysis.row_wise``: scaled_dot_product_attention along its queries, is_causal
    checked to be False, as rows would see other keys, and dropout_p to be 0; attn_mask shrinks where it has a row for
    each query; scale, enable_gqa irrelevant. Products along the rows of their first factor, and along the batch of
    both; norms, softmaxes and reductions along other axes than theirs: dim, normalized_shape checked; eps, keepdim
    kept. Elementwise operators, whose operands shrink unless they are broadcast along the axis. Sizes of reshapes and
    expand adapted.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

import torch
from torch import fx

from flowopt.analysis.narrowing import Narrowed, Narrowing, Selection, is_behind_costly, narrowing, selection_of
from flowopt.analysis.rows import Place
from flowopt.program.program import Program
from flowopt.rewrite import Edit, Exactness, RewritePass, Site

_aten = torch.ops.aten
_VIEWS = {_aten.view.default, _aten._unsafe_view.default}


@dataclass(frozen=True, slots=True)
class Plan:
    """Compute ``steps``, in graph order, for the rows of ``selection`` alone.

    Attributes:
        selection: which rows.
        steps: operators, with the rows that each reads.
        selections: nodes that become selections of all rows that are left, with their axes.
        saved: how many of the steps cost something.
    """

    selection: Selection
    steps: tuple[Narrowed, ...]
    selections: tuple[tuple[fx.Node, int], ...]
    saved: int


class HoistSelections(RewritePass[Plan]):
    """Compute the rows alone that a selection picks."""

    exactness: ClassVar[Exactness] = Exactness.EXACT
    anchors: ClassVar[tuple[Any, ...]] = (_aten.select.int, _aten.slice.Tensor)

    largest_part: float = 0.5
    "Largest part of an axis of known size that is worth the slices of what stays whole."

    def sites(self, program: Program) -> list[fx.Node]:
        """Selections of rows that a costly operator computes, perhaps with others in between."""
        found = ((node, selection_of(node)) for node in super().sites(program))
        return [node for node, selection in found if selection is not None and is_behind_costly(node, selection)]

    def check(self, site: Site) -> Plan:
        selection = selection_of(site.node)
        assert selection is not None  # or it were no site
        if selection.count.is_Integer:
            part = f"{selection.length} of {selection.count} rows are selected; largest_part is {self.largest_part}"
            site.require(selection.length <= self.largest_part * int(selection.count), "no-gain", part)
        found = narrowing(site.node, selection)
        if not found.saved:
            _refuse(site, found)
        return Plan(selection, found.steps, found.selections, len(found.saved))

    def rewrite(self, edit: Edit, plan: Plan) -> str:
        narrow: dict[tuple[fx.Node, Place], fx.Node] = {}
        for step in plan.steps:
            with edit.before(step.node):
                for read in step.how.reads:
                    if (read.source, read.place) not in narrow:
                        narrow[read.source, read.place] = _sliced(edit, read.source, read.place.axis, plan.selection)
                narrow[step.node, step.place] = _repeated(edit, step, narrow)
        for node, axis in plan.selections:
            rows = narrow[_source(node), Place(axis)]
            with edit.before(node):
                is_select = node.target is _aten.select.int
                edit.replace(node, edit.call(_aten.select.int, rows, axis, 0) if is_select else rows)
        rows_text = "1 row" if plan.selection.length == 1 else f"{plan.selection.length} rows"
        return f"{len(plan.steps)} operators, {plan.saved} of them costly, for {rows_text} of {plan.selection.count}"


def _refuse(site: Site, found: Narrowing) -> NoReturn:
    for node, reader in found.kept[:1]:
        if reader.op == "output":
            site.refuse("graph-output", f"{node.name} is an output of the model", node)
        site.refuse("multiple-readers", f"all rows of {node.name} are read by {reader.name} ({reader.target})", node)
    site.refuse("no-gain", "no product, norm or attention before it would compute fewer rows")


def _sliced(edit: Edit, source: fx.Node, axis: int, selection: Selection) -> fx.Node:
    return edit.call(_aten.slice.Tensor, source, axis, selection.start, selection.stop)


def _repeated(edit: Edit, step: Narrowed, narrow: dict[tuple[fx.Node, Place], fx.Node]) -> fx.Node:
    """The same operator on the selected rows."""
    node = step.node
    args: list[Any] = [list(a) if isinstance(a, (list, tuple)) else a for a in node.args]
    kwargs = dict(node.kwargs)
    for read in step.how.reads:
        rows = narrow[read.source, read.place]
        first, *inner = read.path
        if inner:
            args[int(first)][int(inner[0])] = rows
        elif isinstance(first, str):
            kwargs[first] = rows
        else:
            args[first] = rows
    if step.how.sizes is not None:
        args[1] = list(step.how.sizes)
    # Rows that were neighbours in memory may be apart, and a view would refuse them.
    target = _aten.reshape.default if node.target in _VIEWS else node.target
    return edit.call(target, *args, **kwargs)


def _source(selection: fx.Node) -> fx.Node:
    source = selection.args[0]
    assert isinstance(source, fx.Node)
    return source
