"""Single operators computed in float64 and rounded once: never worse than the original."""

from typing import Final

import torch
from torch import fx

from flowopt.ir.metadata import recorded_tensor
from flowopt.rewrite import Edit
from tests.mutation.right.kind import Kind, built
from tests.mutation.right.term import Term, aten, call, is_float

_OPERATORS = (
    aten.linear.default,
    aten.conv2d.default,
    aten.layer_norm.default,
    aten.gelu.default,
    aten.silu.default,
    aten.mean.dim,
    aten.rsqrt.default,
    aten.softmax.int,
    aten.scaled_dot_product_attention.default,
    aten.matmul.default,
)


def _in_float64(edit: Edit, node: fx.Node) -> Term:
    """The same operator between two casts."""
    wide = {n: call(edit, aten._to_copy.default, Term(edit, n), dtype=torch.float64).node for n in _floats(node)}
    result = Term(edit, edit.repeat(node, wide))
    value = recorded_tensor(node)
    assert value is not None
    return result.op(aten._to_copy.default, dtype=value.dtype)


def _floats(node: fx.Node) -> list[fx.Node]:
    return [n for n in node.all_input_nodes if is_float(n)]


KINDS: Final[tuple[Kind, ...]] = (built("in-float64", _OPERATORS, _in_float64, is_float, keeps_16_bits=True),)
