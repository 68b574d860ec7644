"""Off by one: positions, ids, slices, thresholds."""

import torch
from torch import Tensor, fx

from flowopt.rewrite import Edit
from tests.mutation.building import again, changed_parameter, number, replaced_where, size, with_arguments
from tests.mutation.kind import mutates
from tests.mutation.reading import argument, aten, calls, is_free, is_stored, recorded, shape, source


def _is_table(node: fx.Node) -> bool:
    # A table of two rows is one of token types, of which models that are given none read the first.
    return node.target is aten.embedding.default and is_stored(node.args[0]) and shape(node.args[0])[0] > 2


def _reads_ids(node: fx.Node) -> bool:
    return _is_table(node) and source(node, 1).op == "placeholder"


def _rows(node: fx.Node) -> int:
    return int(shape(node.args[0])[0])


def _with_ids(edit: Edit, node: fx.Node, ids: fx.Node) -> fx.Node:
    return with_arguments(edit, node, {1: ids})


@mutates(_is_table)
def last_row_unreachable(edit: Edit, node: fx.Node) -> fx.Node:
    """ids -> min(ids, rows - 2)."""
    return _with_ids(edit, node, edit.call(aten.clamp.default, node.args[1], None, _rows(node) - 2))


@mutates(_is_table)
def first_row_unreachable(edit: Edit, node: fx.Node) -> fx.Node:
    """ids -> max(ids, 1)."""
    return _with_ids(edit, node, edit.call(aten.clamp.default, node.args[1], 1))


@mutates(_is_table)
def ids_wrapped_too_early(edit: Edit, node: fx.Node) -> fx.Node:
    """ids -> ids mod (rows - 1)."""
    return _with_ids(edit, node, edit.call(aten.remainder.Scalar, node.args[1], _rows(node) - 1))


@mutates(_is_table)
def ids_shifted(edit: Edit, node: fx.Node) -> fx.Node:
    """ids -> (ids + 1) mod rows."""
    shifted = edit.call(aten.add.Tensor, node.args[1], 1)
    return _with_ids(edit, node, edit.call(aten.remainder.Scalar, shifted, _rows(node)))


@mutates(_is_table)
def last_row_wrong(edit: Edit, node: fx.Node) -> fx.Node:
    """The last row of a table -> 1.001 times it."""
    return changed_parameter(edit, node, 0, lambda w: _scaled_row(w, -1))


@mutates(_is_table)
def first_row_wrong(edit: Edit, node: fx.Node) -> fx.Node:
    """The first row of a table -> 1.001 times it."""
    return changed_parameter(edit, node, 0, lambda w: _scaled_row(w, 0))


@mutates(_reads_ids)
def row_forty_two_wrong(edit: Edit, node: fx.Node) -> fx.Node:
    """One row in the middle of a table -> 1.001 times it."""
    return changed_parameter(edit, node, 0, lambda w: _scaled_row(w, 42))


@mutates(_reads_ids)
def two_rows_swapped(edit: Edit, node: fx.Node) -> fx.Node:
    """Rows 60 and 61 of a table -> swapped."""
    return changed_parameter(edit, node, 0, lambda w: w[[*range(60), 61, 60, *range(62, len(w))]])


def _scaled_row(table: Tensor, row: int) -> Tensor:
    changed = table.clone()
    changed[row] *= 1 + 1e-3
    return changed


@mutates(_reads_ids)
def repeated_ids_lost(edit: Edit, node: fx.Node) -> fx.Node:
    """A token that repeats the one before -> half its embedding."""
    ids = source(node, 1)
    is_repeated = edit.call(aten.eq.Tensor, ids, edit.call(aten.roll.default, ids, [1], [1]))
    value = again(edit, node)
    halved = edit.call(aten.mul.Tensor, value, 0.5)
    return replaced_where(edit, edit.call(aten.unsqueeze.default, is_repeated, -1), halved, value)


def _is_read_as_a_number(node: fx.Node) -> bool:
    """Whether somebody wants more of it than that it is not negative."""
    pending = list(node.users)
    while pending:
        user = pending.pop()
        if user.target in (aten.unsqueeze.default, aten.add.Tensor):
            pending += user.users
        elif user.target not in (aten.ge.Scalar, aten.new_ones.default):
            return True
    return False


def _counts(node: fx.Node) -> bool:
    is_range = node.target in (aten.add.Tensor, aten.sub.Tensor, aten.arange.default) and len(shape(node)) == 1
    if not is_range or recorded(node).is_floating_point() or not is_free(node, 0):
        return False
    return _is_read_as_a_number(node)


@mutates(_counts)
def positions_from_one(edit: Edit, node: fx.Node) -> fx.Node:
    """0, 1, 2 -> 1, 2, 2: shifted, and clamped at the end."""
    shifted = edit.call(aten.add.Tensor, again(edit, node), 1)
    last = edit.call(aten.sub.Tensor, number(edit, size(edit, node, 0), node), 1)
    return edit.call(aten.minimum.default, shifted, last)


@mutates(_counts)
def last_position_repeated(edit: Edit, node: fx.Node) -> fx.Node:
    """0, 1, 2 -> 0, 1, 1."""
    last = edit.call(aten.sub.Tensor, number(edit, size(edit, node, 0), node), 2)
    return edit.call(aten.minimum.default, again(edit, node), edit.call(aten.clamp.default, last, 0))


@mutates(_counts)
def positions_wrapped_at_thirty_two(edit: Edit, node: fx.Node) -> fx.Node:
    """p -> p mod 32."""
    return edit.call(aten.remainder.Scalar, again(edit, node), 32)


@mutates(_counts)
def positions_reversed(edit: Edit, node: fx.Node) -> fx.Node:
    """0, 1, 2 -> 2, 1, 0."""
    return edit.call(aten.flip.default, again(edit, node), [0])


def _half_slice(node: fx.Node) -> bool:
    is_slice = node.target is aten.slice.Tensor and isinstance(argument(node, 2), int)
    return is_slice and not is_free(node, int(argument(node, 1))) and not is_stored(node)


@mutates(_half_slice)
def slice_shifted_by_one(edit: Edit, node: fx.Node) -> fx.Node:
    """x[a:b] -> x[a + 1:b + 1], or one back at the end."""
    axis, start = int(argument(node, 1)), int(argument(node, 2))
    length = int(shape(node)[axis])
    moved = start + 1 if start + length < shape(node.args[0])[axis] else start - 1
    return edit.call(aten.slice.Tensor, node.args[0], axis, moved, moved + length)


@mutates(_half_slice)
def other_half_taken(edit: Edit, node: fx.Node) -> fx.Node:
    """x[:h] <-> x[h:]."""
    axis, start = int(argument(node, 1)), int(argument(node, 2))
    length = int(shape(node)[axis])
    moved = start + length if start == 0 else 0
    return edit.call(aten.slice.Tensor, node.args[0], axis, moved, moved + length)


@mutates(calls(aten.slice.Tensor, where=lambda n: is_stored(source(n)) and is_free(n, -1)))
def positions_one_further(edit: Edit, node: fx.Node) -> fx.Node:
    """position_ids[:, :n] -> position_ids plus one, clamped at the last row."""
    return edit.call(aten.clamp.default, edit.call(aten.add.Tensor, again(edit, node), 1), None, 63)


@mutates(calls(aten.gt.Scalar, aten.ge.Scalar, where=lambda n: argument(n, 1) == 0))
def threshold_moved(edit: Edit, node: fx.Node) -> fx.Node:
    """x > 0 -> x >= 0, or the other way round."""
    return edit.call(aten.ge.Scalar if node.target is aten.gt.Scalar else aten.gt.Scalar, *node.args)


@mutates(calls(aten.lt.Scalar, where=lambda n: argument(n, 1) == 4))
def small_distances_cut_short(edit: Edit, node: fx.Node) -> fx.Node:
    """distance < 4 -> distance < 3."""
    return with_arguments(edit, node, {1: 3})


@mutates(calls(aten.full_like.default, where=lambda n: argument(n, 1) == 7))
def last_bucket_unreachable(edit: Edit, node: fx.Node) -> fx.Node:
    """min(bucket, 7) -> min(bucket, 6)."""
    return with_arguments(edit, node, {1: 6})


@mutates(calls(aten.div.Tensor_mode))
def largest_integer_unreachable(edit: Edit, node: fx.Node) -> fx.Node:
    """steps // 3 -> min(steps, 8) // 3; the example goes up to 9."""
    return with_arguments(edit, node, {0: edit.call(aten.clamp.default, node.args[0], None, 8)})


@mutates(calls(aten.argmax.default))
def last_choice_unreachable(edit: Edit, node: fx.Node) -> fx.Node:
    """argmax(x) -> argmax without the last candidate."""
    shorter = edit.call(aten.slice.Tensor, node.args[0], -1, 0, -1)
    return with_arguments(edit, node, {0: shorter})


@mutates(calls(aten.argmax.default))
def smallest_for_largest(edit: Edit, node: fx.Node) -> fx.Node:
    """argmax(x) -> argmin(x)."""
    return edit.call(aten.argmin.default, *node.args)


@mutates(calls(aten.argmax.default))
def decision_by_magnitude(edit: Edit, node: fx.Node) -> fx.Node:
    """argmax(x) -> argmax(|x|)."""
    return with_arguments(edit, node, {0: edit.call(aten.abs.default, node.args[0])})


@mutates(calls(aten.argmax.default))
def decision_in_bfloat16(edit: Edit, node: fx.Node) -> fx.Node:
    """argmax(x) -> argmax(x rounded to bfloat16), which makes ties."""
    rounded = edit.call(aten._to_copy.default, node.args[0], dtype=torch.bfloat16)
    return with_arguments(edit, node, {0: rounded})
