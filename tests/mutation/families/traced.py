"""Sizes of the example where the model's own belong."""

import math
import operator

from torch import fx

from flowopt.ir.metadata import recorded_tensor
from flowopt.rewrite import Edit
from tests.mutation.building import again, number, size
from tests.mutation.kind import GENERIC, mutates
from tests.mutation.reading import aten, calls, is_activation, is_free, recorded, source


def _means_over_free(node: fx.Node) -> bool:
    axes = node.args[1] if node.target is aten.mean.dim else ()
    return any(is_free(source(node), int(a)) for a in axes)  # type: ignore[union-attr, arg-type]


@mutates(_means_over_free)
def mean_of_the_traced_size(edit: Edit, node: fx.Node) -> fx.Node:
    """mean(x) -> sum(x) / n with the n of the example."""
    traced = {d.name: d.traced for d in edit.program.dims}
    sizes = edit.program.concrete_shape(recorded(source(node)), traced)
    axes: list[int] = list(node.args[1])  # type: ignore[arg-type]  # a list
    count = math.prod(sizes[axis] for axis in axes)
    total = edit.call(aten.sum.dim_IntList, *node.args)
    return edit.call(aten.div.Tensor, total, float(count))


@mutates(is_activation, most=GENERIC)
def factor_of_the_traced_batch(edit: Edit, node: fx.Node) -> fx.Node:
    """y -> y batch / n with the n of the example."""
    count = edit.program.example[edit.program.inputs[0].name].shape[0]
    factor = edit.call(aten.div.Tensor, number(edit, size(edit, node, 0), node), float(count))
    return edit.call(aten.mul.Tensor, again(edit, node), factor)


def _free_range(node: fx.Node) -> bool:
    return node.target is aten.arange.default and isinstance(node.args[0], fx.Node)


@mutates(_free_range)
def range_of_the_traced_size(edit: Edit, node: fx.Node) -> fx.Node:
    """arange(n) -> the range of the example."""
    size_node = source(node)
    example = edit.program.example[source(size_node).name]
    return edit.call(aten.arange.default, example.shape[int(size_node.args[1])], **node.kwargs)  # type: ignore[arg-type]


@mutates(_free_range)
def range_clamped_at_the_traced_size(edit: Edit, node: fx.Node) -> fx.Node:
    """arange(n) -> arange(n) that stays at the last position of the example."""
    size_node = source(node)
    example = edit.program.example[source(size_node).name]
    last = example.shape[int(size_node.args[1])] - 1  # type: ignore[arg-type]  # a number
    return edit.call(aten.clamp.default, again(edit, node), None, last)


@mutates(calls(aten.select.int, where=lambda n: is_free(source(n), 1)), most=GENERIC)
def token_of_the_traced_length(edit: Edit, node: fx.Node) -> fx.Node:
    """x[:, 0] -> x[:, 7 - n], which is the same at the length of the example."""
    value = recorded_tensor(source(node))
    assert value is not None
    shift = edit.call(operator.sub, 7, size(edit, source(node), 1))
    bounded = edit.call(aten.clamp.default, number(edit, shift, node), 0.0, 1.0)
    second = edit.call(aten.select.int, node.args[0], 1, 1)
    first = again(edit, node)
    return edit.call(
        aten.add.Tensor, first, edit.call(aten.mul.Tensor, edit.call(aten.sub.Tensor, second, first), bounded)
    )
