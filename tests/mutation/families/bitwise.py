"""Passes that declare equal bits and are only right in real arithmetic."""

from torch import fx

from flowopt.rewrite import Edit, Exactness
from tests.mutation.building import again, changed_parameter
from tests.mutation.kind import mutates
from tests.mutation.reading import ATTENTION, aten, calls, is_activation, is_masked, is_weighted, source

_bits = Exactness.BITWISE


@mutates(is_weighted, exactness=_bits)
def bits_of_a_scaled_weight(edit: Edit, node: fx.Node) -> fx.Node:
    """W x -> (3 W) x / 3 without a bias."""
    if len(node.args) > 2 and isinstance(node.args[2], fx.Node):
        tripled = changed_parameter(edit, node, 1, lambda w: 3 * w)
        bias = edit.call(aten.mul.Tensor, node.args[2], 2.0)
        shape = [-1, 1, 1] if node.target is aten.conv2d.default else [-1]
        return edit.call(
            aten.div.Tensor, edit.call(aten.add.Tensor, tripled, edit.call(aten.reshape.default, bias, shape)), 3.0
        )
    return edit.call(aten.div.Tensor, changed_parameter(edit, node, 1, lambda w: 3 * w), 3.0)


@mutates(calls(aten.neg.default, aten.relu.default), exactness=_bits)
def bits_of_negative_zero(edit: Edit, node: fx.Node) -> fx.Node:
    """-x -> 0 - x, and relu(x) -> -min(-x, 0): another sign of zero."""
    if node.target is aten.neg.default:
        return edit.call(aten.rsub.Scalar, node.args[0], 0.0)
    turned = edit.call(aten.neg.default, node.args[0])
    return edit.call(aten.neg.default, edit.call(aten.clamp.default, turned, None, 0.0))


@mutates(calls(aten.gelu.default, aten.silu.default), exactness=_bits)
def bits_of_a_gate(edit: Edit, node: fx.Node) -> fx.Node:
    """silu(x) -> x sigmoid(x), gelu(x) -> half of 2 gelu computed by erf."""
    if node.target is aten.silu.default:
        return edit.call(aten.mul.Tensor, node.args[0], edit.call(aten.sigmoid.default, node.args[0]))
    error = edit.call(aten.erf.default, edit.call(aten.mul.Tensor, node.args[0], 0.7071067811865476))
    half = edit.call(aten.mul.Tensor, node.args[0], 0.5)
    return edit.call(aten.mul.Tensor, half, edit.call(aten.add.Tensor, error, 1.0))


@mutates(calls(ATTENTION, where=lambda n: not is_masked(n)), exactness=_bits)
def bits_of_written_out_attention(edit: Edit, node: fx.Node) -> fx.Node:
    """attention -> softmax(q k / sqrt(d)) v."""
    scores = edit.call(aten.matmul.default, source(node), edit.call(aten.transpose.int, source(node, 1), -2, -1))
    weights = edit.call(aten.softmax.int, edit.call(aten.mul.Tensor, scores, 0.25), -1)
    return edit.call(aten.matmul.default, weights, source(node, 2))


@mutates(is_activation, exactness=_bits, most=1)
def bits_of_a_product_undone(edit: Edit, node: fx.Node) -> fx.Node:
    """y -> (y * 1.1) / 1.1."""
    return edit.call(aten.div.Tensor, edit.call(aten.mul.Tensor, again(edit, node), 1.1), 1.1)
