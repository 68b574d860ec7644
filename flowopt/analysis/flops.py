"""Floating point operations of one run, from recorded shapes."""

from collections.abc import Mapping
from math import prod

import torch
from torch import fx

from flowopt.analysis.concrete_shapes import ConcreteShapes, Shape, SizedProgram, is_view, recorded_tensors

_aten = torch.ops.aten
# Operator to the argument whose last axis is summed over.
_PRODUCTS = {
    _aten.linear.default: 0,
    _aten.mm.default: 0,
    _aten.bmm.default: 0,
    _aten.mv.default: 0,
    _aten.dot.default: 0,
    _aten.matmul.default: 0,
    _aten.addmm.default: 1,
    _aten.addmv.default: 1,
    _aten.baddbmm.default: 1,
}
_CONVOLUTIONS = {
    *(getattr(_aten, f"conv{rank}d").default for rank in (1, 2, 3)),
    *(getattr(_aten, f"conv{rank}d").padding for rank in (1, 2, 3)),
}
_TRANSPOSED = {_aten.conv_transpose1d.default, _aten.conv_transpose2d.input, _aten.conv_transpose3d.input}
_MULTIPLYING = {
    *_PRODUCTS,
    *_CONVOLUTIONS,
    *_TRANSPOSED,
    _aten.convolution.default,
    _aten.scaled_dot_product_attention.default,
}
_RECURRENT = {_aten.lstm.input, _aten.gru.input, _aten.rnn_tanh.input, _aten.rnn_relu.input}


def flops(program: SizedProgram, sizes: Mapping[str, int]) -> int | None:
    """Operations of one run, two per multiply-add; operators that multiply no matrices count their output elements.

    An operator whose sizes depend on data counts as nothing.

    Args:
        program: whose graph is counted.
        sizes: every free dimension by name.

    Returns:
        None when the sizes of every operator depend on data.
    """
    shapes = ConcreteShapes(program, sizes)
    counts = [node_flops(node, shapes) for node in program.graph.nodes if _computes(node)]
    known = [count for count in counts if count is not None]
    return None if counts and not known else sum(known)


def is_product(node: fx.Node) -> bool:
    """Whether an operator multiplies matrices, or convolves, or does so inside attention."""
    return node.op == "call_function" and node.target in _MULTIPLYING


def node_flops(node: fx.Node, shapes: ConcreteShapes) -> int | None:
    """Operations of one operator; None when a size depends on data."""
    output = _elements(node, shapes)
    if output is None:
        return None
    if node.target in _PRODUCTS:
        factor = shapes.of(node.args[_PRODUCTS[node.target]])
        return None if factor is None else 2 * output * prod(factor[-1:])
    if node.target in _CONVOLUTIONS or (node.target is _aten.convolution.default and not node.args[6]):
        return _convolution(output, shapes.of(node.args[1]))
    if node.target in _TRANSPOSED or node.target is _aten.convolution.default:
        points = shapes.of(node.args[0])
        return None if points is None else _convolution(prod(points), shapes.of(node.args[1]))
    if node.target is _aten.scaled_dot_product_attention.default:
        return _attention(shapes.of(node.args[0]), shapes.of(node.args[1]), shapes.of(node.args[2]))
    if node.target is _aten.einsum.default:
        return _einsum(node, output, shapes)
    if node.target in _RECURRENT:
        return _recurrent(node, shapes)
    return output


def _computes(node: fx.Node) -> bool:
    return node.op == "call_function" and not is_view(node) and bool(recorded_tensors(node))


def _elements(node: fx.Node, shapes: ConcreteShapes) -> int | None:
    found = [shapes.shape(tensor) for tensor in recorded_tensors(node)]
    return None if None in found else sum(prod(shape) for shape in found if shape is not None)


def _convolution(points: int, weight: Shape | None) -> int | None:
    """Every point, of the output or of a transposed convolution's input, meets one filter of its group."""
    return None if weight is None else 2 * points * prod(weight[1:])


def _attention(query: Shape | None, key: Shape | None, value: Shape | None) -> int | None:
    if query is None or key is None or value is None:
        return None
    return 2 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _einsum(node: fx.Node, output: int, shapes: ConcreteShapes) -> int | None:
    """Every output element sums over all labels that it does not have. Of three operands, that is an upper bound."""
    equation, operands = node.args[:2]
    assert isinstance(equation, str) and isinstance(operands, (list, tuple))
    left, arrow, right = equation.replace(" ", "").partition("->")
    summed: dict[str, int] = {}
    for labels, operand in zip(left.split(","), operands, strict=True):
        shape = shapes.of(operand)
        if shape is None:
            return None
        before, _, after = labels.partition("...")
        named = [*zip(before, shape, strict=False), *zip(reversed(after), reversed(shape), strict=False)]
        summed |= {n: size for n, size in named if (n not in right if arrow else left.count(n) > 1)}
    return (2 if len(operands) > 1 else 1) * output * prod(summed.values())


def _recurrent(node: fx.Node, shapes: ConcreteShapes) -> int | None:
    """Every step of every sample multiplies with all matrices."""
    weights = node.args[2]
    assert isinstance(weights, (list, tuple))
    found = [shapes.of(node.args[0]), *(shapes.of(weight) for weight in weights)]
    if None in found:
        return None
    steps, *matrices = (shape for shape in found if shape is not None)
    return 2 * prod(steps[:-1]) * sum(prod(shape) for shape in matrices if len(shape) == 2)
