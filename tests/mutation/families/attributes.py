"""Wrong attributes of operators."""

from torch import fx

from flowopt.rewrite import Edit
from tests.mutation.building import again, constant_like, normed_again, padded, replaced_where, with_arguments
from tests.mutation.kind import mutates
from tests.mutation.reading import (
    ATTENTION,
    argument,
    aten,
    calls,
    is_batch_normed,
    is_free,
    is_stored,
    shape,
    source,
)

# What other frameworks take where this one takes the key.
_ELSEWHERE = {1e-5: 1e-3, 1e-6: 1e-5, 1e-12: 1e-5}


def _adds_epsilon(node: fx.Node) -> bool:
    is_sum = node.target is aten.add.Tensor and isinstance(node.args[1], float)
    return is_sum and source(node).target is aten.mean.dim


def _has_epsilon(node: fx.Node) -> bool:
    return node.target is aten.layer_norm.default or is_batch_normed(node) or _adds_epsilon(node)


def _epsilon(node: fx.Node) -> float:
    if _adds_epsilon(node):
        return float(argument(node, 1))
    return float(argument(node, 4, 1e-5) if node.target is aten.layer_norm.default else argument(source(node), 6))


def _with_epsilon(edit: Edit, node: fx.Node, epsilon: float) -> fx.Node:
    if _adds_epsilon(node):
        return with_arguments(edit, node, {1: epsilon})
    if node.target is aten.layer_norm.default:
        return with_arguments(edit, node, {4: epsilon})
    return normed_again(edit, node, {6: epsilon})


@mutates(_has_epsilon)
def epsilon_times_ten(edit: Edit, node: fx.Node) -> fx.Node:
    """norm with eps -> norm with 10 eps."""
    return _with_epsilon(edit, node, 10 * _epsilon(node))


@mutates(_has_epsilon)
def epsilon_of_another_framework(edit: Edit, node: fx.Node) -> fx.Node:
    """norm with its eps -> norm with the default of another framework."""
    return _with_epsilon(edit, node, _ELSEWHERE[_epsilon(node)])


@mutates(_has_epsilon)
def epsilon_slightly_off(edit: Edit, node: fx.Node) -> fx.Node:
    """norm with eps -> norm with 1.01 eps."""
    return _with_epsilon(edit, node, 1.01 * _epsilon(node))


@mutates(calls(ATTENTION))
def attention_scale_per_width(edit: Edit, node: fx.Node) -> fx.Node:
    """scores / sqrt(d) -> scores / d."""
    return with_arguments(edit, node, {}, scale=1.0 / shape(source(node))[-1])


@mutates(calls(ATTENTION))
def attention_scale_of_another_model(edit: Edit, node: fx.Node) -> fx.Node:
    """Scaled scores -> unscaled ones, or the other way round."""
    usual = shape(source(node))[-1] ** -0.5
    is_usual = abs(node.kwargs.get("scale", usual) - usual) < 1e-6
    return with_arguments(edit, node, {}, scale=1.0 if is_usual else usual)


@mutates(calls(ATTENTION, where=lambda node: len(node.args) == 3))
def attention_made_causal(edit: Edit, node: fx.Node) -> fx.Node:
    """attention -> attention that looks back only."""
    return edit.call(ATTENTION, *node.args[:3], is_causal=True)


@mutates(calls(aten.gelu.default))
def gelu_of_the_other_kind(edit: Edit, node: fx.Node) -> fx.Node:
    """gelu by erf <-> gelu by tanh."""
    is_exact = node.kwargs.get("approximate", "none") == "none"
    return edit.call(aten.gelu.default, node.args[0], approximate="tanh" if is_exact else "none")


def _is_padded(node: fx.Node) -> bool:
    sizes = shape(node.args[1]) if node.target is aten.conv2d.default else ()
    return len(sizes) == 4 and sizes[2:] == (3, 3) and argument(node, 4) == [1, 1]


@mutates(_is_padded)
def convolution_dilated(edit: Edit, node: fx.Node) -> fx.Node:
    """conv of padding 1 -> conv of dilation 2 and padding 2."""
    return with_arguments(edit, node, {3: argument(node, 3, [1, 1]), 4: [2, 2], 5: [2, 2]})


@mutates(_is_padded)
def padding_replicated(edit: Edit, node: fx.Node) -> fx.Node:
    """conv padded with zeros -> conv padded with the border."""
    return with_arguments(edit, node, {0: padded(edit, source(node), 1, replicated=True), 4: [0, 0]})


@mutates(lambda node: _is_padded(node) and argument(node, 3) == [2, 2])
def padding_on_one_side(edit: Edit, node: fx.Node) -> fx.Node:
    """conv padded by (1, 1) -> conv padded by (0, 1), as TensorFlow does for stride 2."""
    return with_arguments(edit, node, {0: padded(edit, source(node), 0), 4: [0, 0]})


@mutates(calls(aten.max_pool2d.default, where=lambda node: argument(node, 3) == [1, 1]))
def pool_by_mean(edit: Edit, node: fx.Node) -> fx.Node:
    """max_pool -> avg_pool."""
    return edit.call(aten.avg_pool2d.default, *node.args[:4])


@mutates(calls(aten.max_pool2d.default, where=lambda node: source(node).target is not aten.relu.default))
def pool_padded_with_zeros(edit: Edit, node: fx.Node) -> fx.Node:
    """max_pool padded with -inf -> max_pool padded with zeros."""
    return with_arguments(edit, node, {0: padded(edit, source(node), 1), 3: [0, 0]})


@mutates(calls(aten.max_pool2d.default))
def pool_ignores_nan(edit: Edit, node: fx.Node) -> fx.Node:
    """max_pool -> max_pool that passes over NaN."""
    x = source(node)
    lowest = constant_like(edit, x, float("-inf"))
    return with_arguments(edit, node, {0: replaced_where(edit, edit.call(aten.isnan.default, x), lowest, x)})


@mutates(calls(aten.adaptive_avg_pool2d.default))
def pool_by_maximum(edit: Edit, node: fx.Node) -> fx.Node:
    """Mean of a map -> its maximum."""
    return edit.call(aten.amax.default, node.args[0], [2, 3], True)


@mutates(calls(aten.avg_pool2d.default))
def padding_not_counted(edit: Edit, node: fx.Node) -> fx.Node:
    """avg_pool that counts its padding -> avg_pool that does not."""
    return with_arguments(edit, node, {4: argument(node, 4, False), 5: not argument(node, 5, True)})


@mutates(calls(aten.avg_pool2d.default, aten.max_pool2d.default, where=lambda node: is_free(node, 2)))
def sizes_rounded_up(edit: Edit, node: fx.Node) -> fx.Node:
    """pool -> pool with ceil_mode, which is the same where the sizes divide."""
    if node.target is aten.avg_pool2d.default:
        return with_arguments(edit, node, {3: argument(node, 3, [0, 0]), 4: True})
    return with_arguments(edit, node, {3: argument(node, 3, [0, 0]), 4: [1, 1], 5: True})


def _reads_ids(node: fx.Node) -> bool:
    return node.target is aten.embedding.default and is_stored(node.args[0]) and is_free(node, 0)


@mutates(_reads_ids)
def padding_id_made_zero(edit: Edit, node: fx.Node) -> fx.Node:
    """embedding -> embedding whose row 0 is zero, as padding is elsewhere."""
    is_padding = edit.call(aten.unsqueeze.default, edit.call(aten.eq.Scalar, node.args[1], 0), -1)
    value = again(edit, node)
    return replaced_where(edit, is_padding, constant_like(edit, value, 0.0), value)


@mutates(calls(aten.select.int, where=lambda node: argument(node, 1) == 1 and argument(node, 2) == 0))
def last_token_for_first(edit: Edit, node: fx.Node) -> fx.Node:
    """x[:, 0] -> x[:, -1]."""
    return with_arguments(edit, node, {2: -1})


@mutates(calls(aten.select.int, where=lambda node: argument(node, 1) == 1 and argument(node, 2) == 0))
def second_token_for_first(edit: Edit, node: fx.Node) -> fx.Node:
    """x[:, 0] -> x[:, 1]."""
    return with_arguments(edit, node, {2: 1})


@mutates(calls(aten.mean.dim, where=lambda node: argument(node, 1) == [-1] and not is_free(source(node), -1)))
def mean_unbiased(edit: Edit, node: fx.Node) -> fx.Node:
    """sum / n -> sum / (n - 1)."""
    count = shape(source(node))[-1]
    return edit.call(aten.mul.Tensor, again(edit, node), count / (count - 1))


@mutates(calls(aten.mean.dim))
def sum_for_mean(edit: Edit, node: fx.Node) -> fx.Node:
    """mean -> sum."""
    return edit.call(aten.sum.dim_IntList, *node.args)
