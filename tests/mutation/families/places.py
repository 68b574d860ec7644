"""Wrong in one place of a tensor: its edge, its second tile, one element."""

import operator
from typing import Any

from torch import fx

from flowopt.rewrite import Edit
from tests.mutation.building import again, positions, replaced_where, scaled_where, size
from tests.mutation.kind import GENERIC, mutates
from tests.mutation.reading import aten, has_sequence, is_activation, is_image, recorded, shape


def _places(edit: Edit, node: fx.Node, axis: int, first: Any, scale: float = 1e-3) -> fx.Node:
    """y -> (1 + scale) y from position ``first`` of an axis on."""
    place = edit.call(aten.ge.Scalar, positions(edit, node, axis), first)
    switch = edit.call(aten._to_copy.default, place, dtype=recorded(node).dtype)
    return scaled_where(edit, node, switch, scale)


@mutates(is_activation, most=GENERIC)
def last_sample_wrong(edit: Edit, node: fx.Node) -> fx.Node:
    """y[-1] -> 1.001 y[-1]."""
    return _places(edit, node, 0, edit.call(operator.sub, size(edit, node, 0), 1))


@mutates(is_activation, most=GENERIC)
def samples_from_the_ninth_wrong(edit: Edit, node: fx.Node) -> fx.Node:
    """y[8:] -> 1.001 y[8:], as the second tile of a kernel may be."""
    return _places(edit, node, 0, 8)


@mutates(is_activation, most=GENERIC)
def tail_after_tiles_of_four_wrong(edit: Edit, node: fx.Node) -> fx.Node:
    """y[i] -> 1.001 y[i] for the samples after the last whole tile of four."""
    count = size(edit, node, 0)
    tiles = edit.call(operator.mul, edit.call(operator.floordiv, count, 4), 4)
    return _places(edit, node, 0, tiles)


@mutates(has_sequence, most=GENERIC)
def last_token_wrong(edit: Edit, node: fx.Node) -> fx.Node:
    """y[:, -1] -> 1.0001 y[:, -1]."""
    return _places(edit, node, 1, edit.call(operator.sub, size(edit, node, 1), 1), 1e-4)


@mutates(has_sequence, most=GENERIC)
def tokens_from_the_fiftieth_wrong(edit: Edit, node: fx.Node) -> fx.Node:
    """y[:, 49:] -> 1.001 y[:, 49:]."""
    return _places(edit, node, 1, 49)


@mutates(is_image, most=GENERIC)
def last_row_of_the_image_wrong(edit: Edit, node: fx.Node) -> fx.Node:
    """y[:, :, -1] -> 1.001 y[:, :, -1]."""
    return _places(edit, node, 2, edit.call(operator.sub, size(edit, node, 2), 1))


@mutates(is_activation, most=GENERIC)
def one_far_element_wrong(edit: Edit, node: fx.Node) -> fx.Node:
    """y -> y with its element of number 1000 times 1.001."""
    value = again(edit, node)
    flat = edit.call(aten.reshape.default, value, [-1])
    is_it = edit.call(aten.eq.Scalar, positions(edit, flat, 0), 1000)
    changed = replaced_where(edit, is_it, edit.call(aten.mul.Tensor, flat, 1.001), flat)
    return edit.call(aten.reshape.default, changed, [size(edit, value, a) for a in range(len(shape(node)))])
