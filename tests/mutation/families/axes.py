"""The right operator over the wrong axis."""

from torch import fx

from flowopt.rewrite import Edit
from tests.mutation.building import again, changed_parameter, with_arguments
from tests.mutation.kind import GENERIC, mutates
from tests.mutation.reading import (
    ATTENTION,
    argument,
    aten,
    calls,
    has_sequence,
    is_activation,
    is_free,
    is_image,
    is_root_mean_square,
    is_stored,
    shape,
    source,
)


def _sizes(edit: Edit, node: fx.Node, axes: tuple[int, ...]) -> list[fx.Node | int]:
    """Sizes of a tensor in another order: numbers, and calls for free ones."""
    sizes = shape(node)
    return [sizes[a] if isinstance(sizes[a], int) else edit.call(aten.sym_size.int, node, a) for a in axes]


def _moves_heads(node: fx.Node) -> bool:
    is_move = node.target is aten.transpose.int and len(shape(node)) == 4 and node.args[1:] == (1, 2)
    return is_move and 1 not in shape(node)[1:3]


@mutates(_moves_heads)
def reshaped_for_transposed(edit: Edit, node: fx.Node) -> fx.Node:
    """x.transpose(1, 2) -> x.reshape(the same shape)."""
    # By way of one axis, which asks torch nothing about sizes.
    flat = edit.call(aten.reshape.default, node.args[0], [-1])
    return edit.call(aten.reshape.default, flat, _sizes(edit, source(node), (0, 2, 1, 3)))


@mutates(calls(aten.transpose.int, where=lambda n: len(shape(n)) == 3 and n.args[1:] == (1, 2)))
def tokens_reshaped_for_transposed(edit: Edit, node: fx.Node) -> fx.Node:
    """(channels, positions) transposed -> (positions, channels) by reshape."""
    return edit.call(aten.reshape.default, node.args[0], _sizes(edit, source(node), (0, 2, 1)))


@mutates(calls(aten.transpose.int, where=lambda n: len(shape(n)) == 3 and not is_free(n, 1) and not is_free(n, 2)))
def image_transposed(edit: Edit, node: fx.Node) -> fx.Node:
    """Patches row by row -> column by column."""
    tokens = again(edit, node)
    sizes = shape(node)
    side = int(sizes[1] ** 0.5)
    batch = edit.call(aten.sym_size.int, tokens, 0)
    image = edit.call(aten.reshape.default, tokens, [batch, side, side, sizes[2]])
    turned = edit.call(aten.transpose.int, image, 1, 2)
    return edit.call(aten.reshape.default, turned, [batch, side * side, sizes[2]])


@mutates(calls(aten.permute.default, where=lambda n: n.args[1] == [2, 0, 3, 1, 4]))
def heads_before_parts(edit: Edit, node: fx.Node) -> fx.Node:
    """(3, heads) unpacked -> (heads, 3) unpacked."""
    packed = source(node)
    other = edit.call(aten.reshape.default, packed, _sizes(edit, packed, (0, 1, 3, 2, 4)))
    return edit.call(aten.permute.default, other, [3, 0, 2, 1, 4])


def _repeats_heads(node: fx.Node) -> bool:
    if node.target is not aten.reshape.default or not isinstance(node.args[0], fx.Node):
        return False
    inner = source(node)
    inner = source(inner) if inner.target is aten.clone.default else inner
    return (
        inner.target is aten.expand.default and source(inner).target is aten.unsqueeze.default and not is_stored(inner)
    )


@mutates(_repeats_heads)
def heads_tiled_for_repeated(edit: Edit, node: fx.Node) -> fx.Node:
    """Key heads 0, 0, 1, 1 -> 0, 1, 0, 1."""
    expanded = source(node)
    turned = edit.call(aten.transpose.int, expanded, 1, 2)
    return edit.call(aten.reshape.default, turned, node.args[1])


@mutates(calls(ATTENTION))
def heads_rotated(edit: Edit, node: fx.Node) -> fx.Node:
    """Heads 0, 1, 2 -> 2, 0, 1."""
    return edit.call(aten.roll.default, again(edit, node), [1], [1])


@mutates(is_activation, most=GENERIC)
def last_two_columns_swapped(edit: Edit, node: fx.Node) -> fx.Node:
    """y -> y with its last two columns swapped."""
    value, axis = again(edit, node), 1 if is_image(node) else -1
    parts = [edit.call(aten.slice.Tensor, value, axis, *rows) for rows in ((0, -2), (-1, 2**62), (-2, -1))]
    return edit.call(aten.cat.default, parts, axis)


@mutates(has_sequence, most=GENERIC)
def tokens_rolled(edit: Edit, node: fx.Node) -> fx.Node:
    """y[:, t] -> y[:, t - 1]."""
    return edit.call(aten.roll.default, again(edit, node), [1], [1])


@mutates(has_sequence, most=GENERIC)
def tokens_reversed(edit: Edit, node: fx.Node) -> fx.Node:
    """y[:, t] -> y[:, -t]."""
    return edit.call(aten.flip.default, again(edit, node), [1])


@mutates(is_activation, most=GENERIC)
def samples_reversed(edit: Edit, node: fx.Node) -> fx.Node:
    """y[i] -> y[-i], which is right for a batch of one."""
    return edit.call(aten.flip.default, again(edit, node), [0])


_square_kernel = calls(
    aten.conv2d.default, where=lambda n: is_stored(n.args[1]) and shape(n.args[1])[2] == shape(n.args[1])[3] > 1
)


@mutates(_square_kernel)
def kernel_transposed(edit: Edit, node: fx.Node) -> fx.Node:
    """Kernel of (rows, columns) -> (columns, rows)."""
    return changed_parameter(edit, node, 1, lambda w: w.transpose(2, 3))


@mutates(_square_kernel)
def kernel_flipped(edit: Edit, node: fx.Node) -> fx.Node:
    """Correlation -> convolution."""
    return changed_parameter(edit, node, 1, lambda w: w.flip((2, 3)))


@mutates(is_image, most=GENERIC)
def image_mirrored(edit: Edit, node: fx.Node) -> fx.Node:
    """A map -> the map with its columns reversed."""
    return edit.call(aten.flip.default, again(edit, node), [3])


_static_norm = calls(
    aten.layer_norm.default,
    where=lambda n: len(shape(n)) == 3 and not is_free(n, 1) and is_stored(argument(n, 2)),
)


def _with_affine(edit: Edit, plain: fx.Node, node: fx.Node) -> fx.Node:
    return edit.call(aten.add.Tensor, edit.call(aten.mul.Tensor, plain, node.args[2]), node.args[3])


@mutates(_static_norm)
def norm_over_two_axes(edit: Edit, node: fx.Node) -> fx.Node:
    """Statistics per token -> per sample."""
    plain = edit.call(aten.layer_norm.default, node.args[0], list(shape(node)[1:]), None, None, argument(node, 4))
    return _with_affine(edit, plain, node)


@mutates(_static_norm)
def norm_over_tokens(edit: Edit, node: fx.Node) -> fx.Node:
    """Statistics over features -> over tokens."""
    turned = edit.call(aten.transpose.int, node.args[0], 1, 2)
    plain = edit.call(aten.layer_norm.default, turned, [shape(node)[1]], None, None, argument(node, 4))
    return _with_affine(edit, edit.call(aten.transpose.int, plain, 1, 2), node)


def _mean_square_norm(node: fx.Node) -> bool:
    is_product = node.target is aten.mul.Tensor and isinstance(node.args[1], fx.Node)
    return is_product and is_root_mean_square(source(node, 1))


def _root_over(edit: Edit, node: fx.Node, axes: list[int]) -> fx.Node:
    epsilon = source(source(node, 1))
    square = source(source(epsilon))
    mean = edit.call(aten.mean.dim, square, axes, True)
    root = edit.call(aten.rsqrt.default, edit.call(aten.add.Tensor, mean, epsilon.args[1]))
    return edit.call(aten.mul.Tensor, node.args[0], root)


@mutates(_mean_square_norm)
def mean_square_over_tokens(edit: Edit, node: fx.Node) -> fx.Node:
    """Mean square over features -> over tokens."""
    return _root_over(edit, node, [1])


@mutates(_mean_square_norm)
def mean_square_over_samples(edit: Edit, node: fx.Node) -> fx.Node:
    """Mean square over features -> over features and the batch."""
    return _root_over(edit, node, [0, -1])


@mutates(_mean_square_norm)
def mean_square_over_everything(edit: Edit, node: fx.Node) -> fx.Node:
    """Mean square over features -> over features and tokens."""
    return _root_over(edit, node, [1, -1])


@mutates(calls(aten.cumsum.default))
def running_sum_backwards(edit: Edit, node: fx.Node) -> fx.Node:
    """cumsum from the left -> from the right."""
    axis = argument(node, 1)
    turned = edit.call(aten.flip.default, node.args[0], [axis])
    return edit.call(aten.flip.default, edit.call(aten.cumsum.default, turned, axis), [axis])


@mutates(calls(aten.cumsum.default))
def running_sum_without_itself(edit: Edit, node: fx.Node) -> fx.Node:
    """Sum up to and with t -> up to t."""
    return edit.call(aten.sub.Tensor, again(edit, node), node.args[0])


@mutates(calls(aten.softmax.int, aten.log_softmax.int, where=lambda n: len(shape(n)) == 3))
def softmax_over_tokens(edit: Edit, node: fx.Node) -> fx.Node:
    """softmax over the last axis -> over the one before."""
    return with_arguments(edit, node, {1: -2})


@mutates(calls(aten.linalg_vector_norm.default))
def sum_norm_for_square_norm(edit: Edit, node: fx.Node) -> fx.Node:
    """|x|_2 -> |x|_1."""
    return with_arguments(edit, node, {1: 1})


@mutates(calls(aten.var.correction))
def variance_of_the_other_kind(edit: Edit, node: fx.Node) -> fx.Node:
    """Unbiased variance <-> biased."""
    return with_arguments(edit, node, {}, correction=0 if node.kwargs.get("correction", 1) else 1)
