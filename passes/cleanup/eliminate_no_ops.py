"""Remove operators that give what they read.

    _to_copy(x) to x's own dtype and device, alias, detach, lift_fresh_copy     ->  x
    slice(x) from the start to the end in steps of 1                            ->  x
    dropout(x) in eval mode                                                     ->  x
    view, reshape, expand, squeeze to x's own shape                             ->  x
    permute, transpose that move nothing                                        ->  x
    transpose(transpose(x)), permute(permute(x)) that undo each other           ->  x
    x * 1, x / 1 in floating numbers; x + 0, x - 0 in whole ones                ->  x

A site is an operator that does nothing; one that does something is none. Assertions that export leaves in a graph have
no readers, and go with all dead code when a program enters a pipeline. A clone stays: what reads it may need its
layout.

Numerical effect: BITWISE.

Refuses when:
    graph-output            the value is an output of the model, and what it repeats is an input or a stored tensor, or
                            an output too: the caller gets memory of its own

Attributes of the matched operators:
    _to_copy: dtype, device compared with the input's; layout and memory_format must not be given; pin_memory and
    non_blocking irrelevant. alias, detach, lift_fresh_copy: have none. slice: start, step used; dim and end irrelevant
    where the shape stays. dropout, feature_dropout, alpha_dropout: train checked to be False; p irrelevant then.
    view, reshape, expand, squeeze: shapes compared; implicit irrelevant. permute, transpose, t: axes used.
    mul, div: the other operand checked to be the number 1. add, sub: the other checked to be 0; alpha irrelevant then.
"""

from typing import Any, ClassVar

import torch
from torch import fx

from flowopt.analysis.axes import axis_order
from flowopt.ir.metadata import recorded_tensor, sizes_as_text
from flowopt.program.program import Program
from flowopt.rewrite import Edit, Exactness, RewritePass, Site

_aten = torch.ops.aten
_ALIASES = {_aten.alias.default, _aten.detach.default, _aten.lift_fresh_copy.default}
_DROPOUTS = {_aten.dropout.default, _aten.feature_dropout.default, _aten.alpha_dropout.default}
_RESHAPES = {_aten.view.default, _aten.reshape.default, _aten._unsafe_view.default, _aten.expand.default}
# Of an axis that is not 1, which ONNX forbids.
_SQUEEZES = {_aten.squeeze.default, _aten.squeeze.dim, _aten.squeeze.dims}
_PRODUCTS = {_aten.mul.Tensor, _aten.mul.Scalar, _aten.div.Tensor, _aten.div.Scalar}
_SUMS = {_aten.add.Tensor, _aten.add.Scalar, _aten.sub.Tensor, _aten.sub.Scalar}
_ORDERS = {_aten.permute.default, _aten.transpose.int, _aten.t.default}


class EliminateNoOps(RewritePass[fx.Node]):
    """Remove operators that give what they read."""

    exactness: ClassVar[Exactness] = Exactness.BITWISE
    anchors: ClassVar[tuple[Any, ...]] = (
        _aten._to_copy.default,
        *_ALIASES,
        _aten.slice.Tensor,
        *_DROPOUTS,
        *_RESHAPES,
        *_SQUEEZES,
        *_ORDERS,
        *_PRODUCTS,
        *_SUMS,
    )

    def sites(self, program: Program) -> list[fx.Node]:
        """Operators that do nothing."""
        return [n for n in super().sites(program) if _repeated(n) is not None]

    def check(self, site: Site) -> fx.Node:
        source = _repeated(site.node)
        assert source is not None  # a rewrite at another site changes no shape, dtype or order
        outputs = site.program.graph.output_node().all_input_nodes
        is_shared = source.op in ("placeholder", "get_attr") or source in outputs
        message = f"{site.node.name} is an output of the model, and {source.name} is not its own to give"
        site.require(not (site.node in outputs and is_shared), "graph-output", message, source)
        return source

    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        edit.replace(edit.anchor, plan)
        return f"{edit.anchor.target} gives what it reads"


def _repeated(node: fx.Node) -> fx.Node | None:
    """The value that a node gives again; None where it does something."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or not _is_same_type(node, source):
        return None
    if node.target is _aten._to_copy.default:
        keeps = node.kwargs.get("layout") is None and node.kwargs.get("memory_format") is None
        return source if keeps and sizes_as_text(node) == sizes_as_text(source) else None
    if node.target in _DROPOUTS:
        return source if node.args[2:] == (False,) else None
    if node.target is _aten.slice.Tensor:
        start, step = (node.args[i] if len(node.args) > i else default for i, default in ((2, None), (4, 1)))
        return source if start in (None, 0) and step == 1 and sizes_as_text(node) == sizes_as_text(source) else None
    if node.target in _ORDERS:
        return _unmoved(node)
    if node.target in (*_PRODUCTS, *_SUMS):
        # A sum with 0 in floating numbers turns -0.0 into 0.0.
        is_floating, neutral = node.meta["val"].is_floating_point(), 1 if node.target in _PRODUCTS else 0
        is_neutral = not isinstance(node.args[1], (bool, fx.Node)) and node.args[1] == neutral
        return source if is_neutral and is_floating == (node.target in _PRODUCTS) else None
    return source if node.target in _ALIASES or sizes_as_text(node) == sizes_as_text(source) else None


def _is_same_type(node: fx.Node, source: fx.Node) -> bool:
    after, before = recorded_tensor(node), recorded_tensor(source)
    return after is not None and before is not None and (after.dtype, after.device) == (before.dtype, before.device)


def _unmoved(node: fx.Node) -> fx.Node | None:
    """The source of an order that moves nothing, or that the source's own order undoes."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    outer = axis_order(node)
    if outer is None:
        return None
    if list(outer) == sorted(outer):
        return source
    before, inner = source.args[0] if source.args else None, axis_order(source)
    if inner is None or not isinstance(before, fx.Node):
        return None
    return before if [inner[axis] for axis in outer] == list(range(len(outer))) else None
