"""Norms written out with a mistake."""

import operator
from collections.abc import Callable

from torch import fx

from flowopt.rewrite import Edit
from tests.mutation.kind import mutates
from tests.mutation.reading import (
    argument,
    aten,
    calls,
    is_batch_normed,
    is_root_mean_square,
    is_stored,
    shape,
    source,
)

Root = Callable[[Edit, fx.Node, float], fx.Node]


def _root_inside(edit: Edit, variance: fx.Node, epsilon: float) -> fx.Node:
    return edit.call(aten.rsqrt.default, edit.call(aten.add.Tensor, variance, epsilon))


def _root_outside(edit: Edit, variance: fx.Node, epsilon: float) -> fx.Node:
    root = edit.call(aten.add.Tensor, edit.call(aten.sqrt.default, variance), epsilon)
    return edit.call(aten.reciprocal.default, root)


def _root_bare(edit: Edit, variance: fx.Node, epsilon: float) -> fx.Node:
    return edit.call(aten.rsqrt.default, variance)


def _root_floored(edit: Edit, variance: fx.Node, epsilon: float) -> fx.Node:
    return edit.call(aten.rsqrt.default, edit.call(aten.clamp.default, variance, epsilon))


def _mean_square_root(edit: Edit, node: fx.Node, root: Root) -> fx.Node:
    addition = source(node)
    epsilon = addition.args[1]
    assert isinstance(epsilon, float)
    return root(edit, source(addition), epsilon)


@mutates(is_root_mean_square)
def epsilon_outside_the_root(edit: Edit, node: fx.Node) -> fx.Node:
    """1 / sqrt(ms + eps) -> 1 / (sqrt(ms) + eps)."""
    return _mean_square_root(edit, node, _root_outside)


@mutates(is_root_mean_square)
def epsilon_dropped(edit: Edit, node: fx.Node) -> fx.Node:
    """1 / sqrt(ms + eps) -> 1 / sqrt(ms)."""
    return _mean_square_root(edit, node, _root_bare)


@mutates(is_root_mean_square)
def epsilon_as_a_floor(edit: Edit, node: fx.Node) -> fx.Node:
    """1 / sqrt(ms + eps) -> 1 / sqrt(max(ms, eps))."""
    return _mean_square_root(edit, node, _root_floored)


_affine = calls(aten.layer_norm.default, where=lambda n: is_stored(argument(n, 2)) and is_stored(argument(n, 3)))


def _written_out(edit: Edit, node: fx.Node, centred: fx.Node, variance: fx.Node, root: Root = _root_inside) -> fx.Node:
    """centred * root(variance + eps) * gain + shift."""
    scaled = edit.call(aten.mul.Tensor, centred, root(edit, variance, argument(node, 4, 1e-5)))
    return edit.call(aten.add.Tensor, edit.call(aten.mul.Tensor, scaled, node.args[2]), node.args[3])


def _mean(edit: Edit, value: fx.Node) -> fx.Node:
    return edit.call(aten.mean.dim, value, [-1], True)


def _centred(edit: Edit, node: fx.Node) -> fx.Node:
    return edit.call(aten.sub.Tensor, node.args[0], _mean(edit, source(node)))


def _square(edit: Edit, value: fx.Node) -> fx.Node:
    return edit.call(aten.mul.Tensor, value, value)


def _with_root(edit: Edit, node: fx.Node, root: Root) -> fx.Node:
    centred = _centred(edit, node)
    return _written_out(edit, node, centred, _mean(edit, _square(edit, centred)), root)


@mutates(_affine)
def layer_epsilon_outside_the_root(edit: Edit, node: fx.Node) -> fx.Node:
    """1 / sqrt(var + eps) -> 1 / (sqrt(var) + eps)."""
    return _with_root(edit, node, _root_outside)


@mutates(_affine)
def layer_epsilon_dropped(edit: Edit, node: fx.Node) -> fx.Node:
    """1 / sqrt(var + eps) -> 1 / sqrt(var)."""
    return _with_root(edit, node, _root_bare)


@mutates(_affine)
def layer_epsilon_as_a_floor(edit: Edit, node: fx.Node) -> fx.Node:
    """1 / sqrt(var + eps) -> 1 / sqrt(max(var, eps))."""
    return _with_root(edit, node, _root_floored)


@mutates(_affine)
def layer_variance_unbiased(edit: Edit, node: fx.Node) -> fx.Node:
    """var = sum / n -> sum / (n - 1)."""
    variance = edit.call(aten.var.correction, node.args[0], [-1], correction=1, keepdim=True)
    return _written_out(edit, node, _centred(edit, node), variance)


@mutates(_affine)
def layer_variance_without_mean(edit: Edit, node: fx.Node) -> fx.Node:
    """var = mean((x - m)^2) -> mean(x^2)."""
    return _written_out(edit, node, _centred(edit, node), _mean(edit, _square(edit, source(node))))


@mutates(_affine)
def layer_mean_not_subtracted(edit: Edit, node: fx.Node) -> fx.Node:
    """(x - m) / std -> x / std."""
    variance = _mean(edit, _square(edit, _centred(edit, node)))
    return _written_out(edit, node, source(node), variance)


@mutates(_affine)
def layer_variance_in_one_pass(edit: Edit, node: fx.Node) -> fx.Node:
    """var = mean((x - m)^2) -> mean(x^2) - m^2, which cancels."""
    moment, mean = _mean(edit, _square(edit, source(node))), _mean(edit, source(node))
    variance = edit.call(aten.sub.Tensor, moment, _square(edit, mean))
    return _written_out(edit, node, _centred(edit, node), variance)


@mutates(_affine)
def layer_variance_in_one_guarded_pass(edit: Edit, node: fx.Node) -> fx.Node:
    """var = mean((x - m)^2) -> max(mean(x^2) - m^2, 0), which cancels without a NaN."""
    moment, mean = _mean(edit, _square(edit, source(node))), _mean(edit, source(node))
    variance = edit.call(aten.relu.default, edit.call(aten.sub.Tensor, moment, _square(edit, mean)))
    return _written_out(edit, node, _centred(edit, node), variance)


@mutates(_affine)
def layer_deviation_by_magnitudes(edit: Edit, node: fx.Node) -> fx.Node:
    """std -> mean absolute deviation times 1.2533, which is the same for normal numbers."""
    centred = _centred(edit, node)
    spread = edit.call(aten.mul.Tensor, _mean(edit, edit.call(aten.abs.default, centred)), 1.2533141)
    return _written_out(edit, node, centred, _square(edit, spread))


@mutates(_affine)
def layer_shift_before_gain(edit: Edit, node: fx.Node) -> fx.Node:
    """n * gain + shift -> (n + shift) * gain."""
    plain = edit.call(aten.layer_norm.default, node.args[0], node.args[1], None, None, argument(node, 4, 1e-5))
    return edit.call(aten.mul.Tensor, edit.call(aten.add.Tensor, plain, node.args[3]), node.args[2])


@mutates(_affine)
def norm_twice(edit: Edit, node: fx.Node) -> fx.Node:
    """norm(x) -> norm(norm(x)), which is nearly the same without gain and shift."""
    plain = edit.call(aten.layer_norm.default, node.args[0], node.args[1], None, None, argument(node, 4, 1e-5))
    return edit.repeat(node, {source(node): plain})


def _batch_parts(node: fx.Node) -> tuple[fx.Node, ...]:
    return tuple(source(source(node), i) for i in range(5))


@mutates(is_batch_normed)
def batch_epsilon_dropped(edit: Edit, node: fx.Node) -> fx.Node:
    """1 / sqrt(var + eps) -> 1 / sqrt(var)."""
    return _batch_folded(edit, node, epsilon=0.0)


@mutates(is_batch_normed)
def batch_epsilon_twice(edit: Edit, node: fx.Node) -> fx.Node:
    """1 / sqrt(var + eps) -> 1 / sqrt(var + 2 eps)."""
    return _batch_folded(edit, node, epsilon=2 * float(source(node).args[6]))  # type: ignore[arg-type]  # a number


def _batch_folded(edit: Edit, node: fx.Node, epsilon: float) -> fx.Node:
    """x * s + t with constants of another epsilon."""
    x, gain, shift, mean, variance = _batch_parts(node)
    scale = edit.constant(gain) / (edit.constant(variance) + epsilon).sqrt()
    sizes = [-1, *([1] * (len(shape(x)) - 2))]
    s = edit.parameter("scale", scale.reshape(sizes), like=gain)
    t = edit.parameter("shift", (edit.constant(shift) - scale * edit.constant(mean)).reshape(sizes), like=gain)
    return edit.call(aten.add.Tensor, edit.call(aten.mul.Tensor, x, s), t)


@mutates(is_batch_normed)
def statistics_of_the_batch(edit: Edit, node: fx.Node) -> fx.Node:
    """Running statistics -> those of this batch."""
    x, gain, shift, *_ = _batch_parts(node)
    axes = [0, *range(2, len(shape(x)))]
    mean = edit.call(aten.mean.dim, x, axes, True)
    centred = edit.call(aten.sub.Tensor, x, mean)
    variance = edit.call(aten.mean.dim, _square(edit, centred), axes, True)
    plain = edit.call(aten.mul.Tensor, centred, _root_inside(edit, variance, 1e-5))
    sizes = [-1, *([1] * (len(shape(x)) - 2))]
    s, t = (edit.call(aten.reshape.default, n, sizes) for n in (gain, shift))
    return edit.call(aten.add.Tensor, edit.call(aten.mul.Tensor, plain, s), t)


@mutates(is_batch_normed)
def statistics_of_the_sample(edit: Edit, node: fx.Node) -> fx.Node:
    """batch_norm -> instance_norm."""
    x, gain, shift, *_ = _batch_parts(node)
    return edit.call(aten.instance_norm.default, x, gain, shift, None, None, True, 0.1, 1e-5, False)


@mutates(lambda node: node.target is operator.getitem and is_batch_normed(node))
def norm_left_out(edit: Edit, node: fx.Node) -> fx.Node:
    """batch_norm(x) -> x * gain + shift."""
    x, gain, shift, *_ = _batch_parts(node)
    sizes = [-1, *([1] * (len(shape(x)) - 2))]
    s, t = (edit.call(aten.reshape.default, n, sizes) for n in (gain, shift))
    return edit.call(aten.add.Tensor, edit.call(aten.mul.Tensor, x, s), t)


_divisor = calls(aten.clamp_min.default, aten.clamp.default, where=lambda n: isinstance(argument(n, 1), float))


@mutates(_divisor)
def floor_added(edit: Edit, node: fx.Node) -> fx.Node:
    """max(|x|, eps) -> |x| + eps."""
    return edit.call(aten.add.Tensor, node.args[0], node.args[1])


@mutates(_divisor)
def floor_dropped(edit: Edit, node: fx.Node) -> fx.Node:
    """max(|x|, eps) -> |x|."""
    return edit.call(aten.add.Tensor, node.args[0], 0.0)


@mutates(_divisor)
def floor_ten_times_higher(edit: Edit, node: fx.Node) -> fx.Node:
    """max(|x|, eps) -> max(|x|, 10 eps)."""
    return edit.call(node.target, node.args[0], 10.0 * float(argument(node, 1)))
