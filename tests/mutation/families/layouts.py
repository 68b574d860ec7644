"""Strides and offsets taken for granted."""

from torch import fx

from flowopt.rewrite import Edit
from tests.mutation.building import size
from tests.mutation.kind import mutates
from tests.mutation.reading import aten, shape


def _reads_input(node: fx.Node) -> bool:
    inputs = [n for n in node.all_input_nodes if n.op == "placeholder"]
    return node.op == "call_function" and node.target is not aten.sym_size.int and len(inputs) == 1


def _restrided(edit: Edit, node: fx.Node, *offset: int) -> fx.Node:
    """The node's input read as if it were contiguous."""
    read = next(n for n in node.all_input_nodes if n.op == "placeholder")
    sizes = [n if isinstance(n, int) else size(edit, read, axis) for axis, n in enumerate(shape(read))]
    strides: list[fx.Node | int] = [1]
    for following in reversed(sizes[1:]):
        last = strides[0]
        if isinstance(last, int) and isinstance(following, int):
            strides.insert(0, last * following)
        elif last == 1:
            strides.insert(0, following)
        else:
            raise AssertionError("one free size besides the batch is what the models have")
    return edit.repeat(node, {read: edit.call(aten.as_strided.default, read, sizes, strides, *offset)})


def _has_one_free_size(node: fx.Node) -> bool:
    if not _reads_input(node):
        return False
    read = next(n for n in node.all_input_nodes if n.op == "placeholder")
    sizes = shape(read)[1:]
    return all(isinstance(n, int) for n in sizes) or len(sizes) == 1


@mutates(_has_one_free_size)
def input_assumed_contiguous(edit: Edit, node: fx.Node) -> fx.Node:
    """f(x) -> f of x's memory in order."""
    return _restrided(edit, node)


@mutates(_has_one_free_size)
def input_assumed_at_its_storage_start(edit: Edit, node: fx.Node) -> fx.Node:
    """f(x) -> f of x's memory in order, from the beginning of its storage."""
    return _restrided(edit, node, 0)
