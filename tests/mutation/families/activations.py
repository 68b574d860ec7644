"""Elementwise functions that are nearly right, or right only where one looks."""

import math

import torch
from torch import fx

from flowopt.rewrite import Edit
from tests.mutation.building import again, constant_like, replaced_where, through
from tests.mutation.kind import mutates
from tests.mutation.reading import argument, aten, calls, source

_relu, _gelu, _silu = calls(aten.relu.default), calls(aten.gelu.default), calls(aten.silu.default)
_smooth = calls(aten.gelu.default, aten.silu.default)


@mutates(_relu)
def relu_dropped(edit: Edit, node: fx.Node) -> fx.Node:
    """relu(x) -> x."""
    return source(node)


@mutates(_relu)
def relu6_for_relu(edit: Edit, node: fx.Node) -> fx.Node:
    """relu(x) -> min(relu(x), 6)."""
    return edit.call(aten.hardtanh.default, node.args[0], 0.0, 6.0)


@mutates(_relu)
def relu_leaking(edit: Edit, node: fx.Node) -> fx.Node:
    """relu(x) -> leaky_relu(x, 1e-3)."""
    return edit.call(aten.leaky_relu.default, node.args[0], 1e-3)


@mutates(_relu)
def relu_smoothed(edit: Edit, node: fx.Node) -> fx.Node:
    """relu(x) -> softplus(x, beta=20)."""
    return edit.call(aten.softplus.default, node.args[0], 20.0)


@mutates(_relu)
def relu_by_comparison(edit: Edit, node: fx.Node) -> fx.Node:
    """relu(x) -> x if x > 0 else 0, which loses NaN."""
    x = source(node)
    return replaced_where(edit, edit.call(aten.gt.Scalar, x, 0.0), x, constant_like(edit, x, 0.0))


@mutates(_relu)
def relu_of_magnitude(edit: Edit, node: fx.Node) -> fx.Node:
    """relu(x) -> |x|."""
    return edit.call(aten.abs.default, node.args[0])


@mutates(calls(aten.hardtanh.default))
def relu6_unclipped(edit: Edit, node: fx.Node) -> fx.Node:
    """min(relu(x), 6) -> relu(x)."""
    return edit.call(aten.relu.default, node.args[0])


@mutates(_smooth)
def sigmoid_for_erf(edit: Edit, node: fx.Node) -> fx.Node:
    """gelu(x) or silu(x) -> x * sigmoid(1.702 x)."""
    gate = edit.call(aten.sigmoid.default, edit.call(aten.mul.Tensor, node.args[0], 1.702))
    return edit.call(aten.mul.Tensor, node.args[0], gate)


@mutates(_smooth)
def gelu_and_silu_swapped(edit: Edit, node: fx.Node) -> fx.Node:
    """gelu(x) <-> silu(x)."""
    other = aten.silu.default if node.target is aten.gelu.default else aten.gelu.default
    return edit.call(other, node.args[0])


@mutates(_smooth)
def smooth_made_hard(edit: Edit, node: fx.Node) -> fx.Node:
    """gelu(x) or silu(x) -> hardswish(x)."""
    return edit.call(aten.hardswish.default, node.args[0])


@mutates(_smooth)
def tails_cut(edit: Edit, node: fx.Node) -> fx.Node:
    """gelu(x) or silu(x) -> relu(x) where |x| > 5 or 15."""
    x, edge = source(node), 5.0 if node.target is aten.gelu.default else 15.0
    is_tail = edit.call(aten.gt.Scalar, edit.call(aten.abs.default, x), edge)
    return replaced_where(edit, is_tail, edit.call(aten.relu.default, x), again(edit, node))


@mutates(_gelu)
def erf_by_a_polynomial(edit: Edit, node: fx.Node) -> fx.Node:
    """erf -> Abramowitz and Stegun 7.1.26, which is right to 1.5e-7."""
    x = source(node)
    z = edit.call(aten.mul.Tensor, edit.call(aten.abs.default, x), math.sqrt(0.5))
    t = edit.call(aten.reciprocal.default, edit.call(aten.add.Tensor, edit.call(aten.mul.Tensor, z, 0.3275911), 1.0))
    series = constant_like(edit, t, 1.061405429)
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series = edit.call(aten.add.Tensor, edit.call(aten.mul.Tensor, series, t), coefficient)
    decay = edit.call(aten.exp.default, edit.call(aten.neg.default, edit.call(aten.mul.Tensor, z, z)))
    rest = edit.call(aten.mul.Tensor, edit.call(aten.mul.Tensor, series, t), decay)
    erf = edit.call(aten.mul.Tensor, edit.call(aten.rsub.Scalar, rest, 1.0), edit.call(aten.sign.default, x))
    half = edit.call(aten.mul.Tensor, x, 0.5)
    return edit.call(aten.mul.Tensor, half, edit.call(aten.add.Tensor, erf, 1.0))


@mutates(_silu)
def silu_by_exponentials(edit: Edit, node: fx.Node) -> fx.Node:
    """silu(x) -> x e^x / (1 + e^x), which overflows."""
    power = edit.call(aten.exp.default, node.args[0])
    gate = edit.call(aten.div.Tensor, power, edit.call(aten.add.Tensor, power, 1.0))
    return edit.call(aten.mul.Tensor, node.args[0], gate)


@mutates(calls(aten.tanh.default))
def tanh_made_hard(edit: Edit, node: fx.Node) -> fx.Node:
    """tanh(x) -> clamp(x, -1, 1)."""
    return edit.call(aten.hardtanh.default, node.args[0])


@mutates(calls(aten.tanh.default))
def tanh_by_exponentials(edit: Edit, node: fx.Node) -> fx.Node:
    """tanh(x) -> (e^2x - 1) / (e^2x + 1), which overflows, and cancels near zero."""
    power = edit.call(aten.exp.default, edit.call(aten.mul.Tensor, node.args[0], 2.0))
    above, below = (edit.call(aten.add.Tensor, power, one) for one in (-1.0, 1.0))
    return edit.call(aten.div.Tensor, above, below)


@mutates(calls(aten.rsqrt.default))
def root_in_half(edit: Edit, node: fx.Node) -> fx.Node:
    """rsqrt(x) -> rsqrt(x) with the digits of half precision, as a table lookup gives."""
    return through(edit, again(edit, node), torch.float16)


@mutates(calls(aten.rsqrt.default))
def root_by_one_newton_step(edit: Edit, node: fx.Node) -> fx.Node:
    """rsqrt(x) -> one Newton step from bfloat16's digits."""
    rough = through(edit, again(edit, node), torch.bfloat16)
    square = edit.call(aten.mul.Tensor, edit.call(aten.mul.Tensor, rough, rough), source(node))
    step = edit.call(aten.rsub.Scalar, edit.call(aten.mul.Tensor, square, 0.5), 1.5)
    return edit.call(aten.mul.Tensor, rough, step)


@mutates(calls(aten.softplus.default))
def softplus_unguarded(edit: Edit, node: fx.Node) -> fx.Node:
    """softplus(x) -> log(1 + e^x), which overflows and loses small values."""
    power = edit.call(aten.add.Tensor, edit.call(aten.exp.default, node.args[0]), 1.0)
    return edit.call(aten.log.default, power)


@mutates(calls(aten.softplus.default))
def softplus_linear_too_early(edit: Edit, node: fx.Node) -> fx.Node:
    """softplus that is linear above 20 -> linear above 10."""
    return edit.call(aten.softplus.default, node.args[0], 1.0, 10.0)


@mutates(calls(aten.sqrt.default, where=lambda node: source(node).target is aten.pow.Tensor_Scalar))
def root_of_a_square(edit: Edit, node: fx.Node) -> fx.Node:
    """sqrt(x ** 2) -> x."""
    return source(source(node))


@mutates(calls(aten.logsumexp.default))
def logsumexp_unguarded(edit: Edit, node: fx.Node) -> fx.Node:
    """logsumexp(x) -> log(sum(e^x)), which overflows."""
    powers = edit.call(aten.exp.default, node.args[0])
    return edit.call(aten.log.default, edit.call(aten.sum.dim_IntList, powers, *node.args[1:]))


@mutates(calls(aten.log_softmax.int))
def log_of_softmax(edit: Edit, node: fx.Node) -> fx.Node:
    """log_softmax(x) -> log(softmax(x)), which is -inf where a probability vanishes."""
    return edit.call(aten.log.default, edit.call(aten.softmax.int, *node.args[:2]))


@mutates(calls(aten.div.Tensor_mode))
def floor_and_trunc_swapped(edit: Edit, node: fx.Node) -> fx.Node:
    """Division rounded down <-> rounded towards zero."""
    other = "trunc" if node.kwargs["rounding_mode"] == "floor" else "floor"
    return edit.call(aten.div.Tensor_mode, *node.args, rounding_mode=other)


@mutates(calls(aten.pow.Tensor_Scalar, where=lambda node: argument(node, 1) == 2))
def square_keeps_the_sign(edit: Edit, node: fx.Node) -> fx.Node:
    """x ** 2 -> x |x|."""
    x = source(node)
    return edit.call(aten.mul.Tensor, x, edit.call(aten.abs.default, x))


@mutates(calls(aten.pow.Tensor_Scalar, where=lambda node: argument(node, 1) == 2))
def square_by_logarithm(edit: Edit, node: fx.Node) -> fx.Node:
    """x ** 2 -> exp(2 log |x + 1e-6|), as fast powers do."""
    shifted = edit.call(aten.add.Tensor, edit.call(aten.abs.default, node.args[0]), 1e-6)
    return edit.call(aten.exp.default, edit.call(aten.mul.Tensor, edit.call(aten.log.default, shifted), 2.0))
