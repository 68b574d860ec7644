"""Activations written with other functions, each accurate in its tails and right for NaN and infinities.

Left out, because they are wrong somewhere: sigmoid as (1 + tanh(x / 2)) / 2 loses all digits of its lower tail, tanh
as 2 sigmoid(2 x) - 1 those around zero; relu as (x + |x|) / 2 makes NaN of -inf, as where(x > 0, x, 0) zero of NaN.
"""

import math
from typing import Any, Final

from torch import fx

from flowopt.rewrite import Edit, Exactness
from tests.goals.planted_right import DecomposeGelu, DecomposeSilu
from tests.mutation.right.kind import Build, Kind, borrowed, built
from tests.mutation.right.term import Term, arguments, aten, is_float

_RELU, _GELU, _TANH, _SIGMOID, _SILU = (
    aten.relu.default,
    aten.gelu.default,
    aten.tanh.default,
    aten.sigmoid.default,
    aten.silu.default,
)
_HARDTANH, _SOFTPLUS, _LEAKY, _ELU = (
    aten.hardtanh.default,
    aten.softplus.default,
    aten.leaky_relu.default,
    aten.elu.default,
)
_HARDSWISH, _ABS, _EXP = aten.hardswish.default, aten.abs.default, aten.exp.default


def _input(edit: Edit, node: fx.Node) -> Term:
    first = node.args[0]
    assert isinstance(first, fx.Node)
    return Term(edit, first)


def _where(condition: Term, yes: Term, no: Term) -> Term:
    return condition.op(aten.where.self, yes, no)


def _relu_as_clamp(edit: Edit, node: fx.Node) -> Term:
    return _input(edit, node).op(aten.clamp_min.default, 0)


def _relu_as_maximum(edit: Edit, node: fx.Node) -> Term:
    """max(x, 0 x) would make NaN of infinities; zeros_like does not."""
    x = _input(edit, node)
    return x.op(aten.maximum.default, x.op(aten.zeros_like.default))


def _relu_as_where(edit: Edit, node: fx.Node) -> Term:
    """0 where x <= 0, else x: a NaN is not <= 0, and stays."""
    x = _input(edit, node)
    return _where(x.op(aten.le.Scalar, 0), x.op(aten.zeros_like.default), x)


def _relu_as_threshold(edit: Edit, node: fx.Node) -> Term:
    return _input(edit, node).op(aten.threshold.default, 0, 0)


def _bounds(edit: Edit, node: fx.Node) -> tuple[Any, Any]:
    a = arguments(edit, node)
    return a["min_val"], a["max_val"]


def _hardtanh_as_clamp(edit: Edit, node: fx.Node) -> Term:
    return _input(edit, node).op(aten.clamp.default, *_bounds(edit, node))


def _hardtanh_in_two_steps(edit: Edit, node: fx.Node) -> Term:
    low, high = _bounds(edit, node)
    return _input(edit, node).op(aten.clamp_max.default, high).op(aten.clamp_min.default, low)


def _gelu_by_erfc(edit: Edit, node: fx.Node) -> Term:
    """gelu(x) = x / 2 erfc(-x / sqrt(2)), without the cancellation of 1 + erf."""
    x = _input(edit, node)
    return x * 0.5 * (x * -math.sqrt(0.5)).op(aten.erfc.default)


def _tanh_by_expm1(edit: Edit, node: fx.Node) -> Term:
    """tanh(|x|) = -t / (t + 2) with t = exp(-2 |x|) - 1, and the sign of x."""
    x = _input(edit, node)
    t = (x.op(_ABS) * -2.0).op(aten.expm1.default)
    return (-t / (t + 2.0)).op(aten.copysign.Tensor, x)


def _sigmoid_by_exp(edit: Edit, node: fx.Node) -> Term:
    """1 / (1 + z) above zero and z / (1 + z) below, with z = exp(-|x|), which never overflows."""
    x = _input(edit, node)
    z = (-x.op(_ABS)).op(_EXP)
    numerator = _where(x.op(aten.lt.Scalar, 0), z, z.op(aten.ones_like.default))
    return numerator / (z + 1.0)


def _sigmoid_by_logarithm(edit: Edit, node: fx.Node) -> Term:
    """exp(logsigmoid(x))."""
    return _input(edit, node).op(aten.log_sigmoid.default).op(_EXP)


def _silu_by_exp(edit: Edit, node: fx.Node) -> Term:
    """x / (1 + exp(-x)): where exp overflows the quotient is zero, as silu is."""
    x = _input(edit, node)
    return x / ((-x).op(_EXP) + 1.0)


def _softplus_stable(edit: Edit, node: fx.Node) -> Term:
    """max(x, 0) + log1p(exp(-|x|)), and x above the operator's threshold."""
    x = _input(edit, node)
    smooth = x.op(aten.clamp_min.default, 0) + (-x.op(_ABS)).op(_EXP).op(aten.log1p.default)
    return _where(x.op(aten.gt.Scalar, 20), x, smooth)


def _leaky_as_maximum(edit: Edit, node: fx.Node) -> Term:
    """max(x, s x) for slopes between 0 and 1."""
    x = _input(edit, node)
    return x.op(aten.maximum.default, x * float(arguments(edit, node)["negative_slope"]))


def _elu_as_where(edit: Edit, node: fx.Node) -> Term:
    x = _input(edit, node)
    return _where(x.op(aten.gt.Scalar, 0), x, x.op(aten.expm1.default))


def _hardswish_by_clamp(edit: Edit, node: fx.Node) -> Term:
    """x * min(max(x + 3, 0), 6) / 6."""
    x = _input(edit, node)
    return x * (x + 3.0).op(aten.clamp.default, 0, 6) / 6.0


def _abs_as_maximum(edit: Edit, node: fx.Node) -> Term:
    x = _input(edit, node)
    return x.op(aten.maximum.default, -x)


def _exp_by_powers_of_two(edit: Edit, node: fx.Node) -> Term:
    return (_input(edit, node) * math.log2(math.e)).op(aten.exp2.default)


def _has_defaults(node: fx.Node) -> bool:
    return is_float(node) and len(node.args) == 1 and not node.kwargs


def _has_small_slope(node: fx.Node) -> bool:
    slope = node.args[1] if len(node.args) > 1 else 0.01
    return isinstance(slope, float) and 0 < slope < 1


def _plain(name: str, anchor: Any, build: Build, exactness: Exactness = Exactness.EXACT) -> Kind:
    return built(name, (anchor,), build, _has_defaults, exactness=exactness)


KINDS: Final[tuple[Kind, ...]] = (
    _plain("relu-as-clamp", _RELU, _relu_as_clamp),
    _plain("relu-as-maximum", _RELU, _relu_as_maximum),
    _plain("relu-as-where", _RELU, _relu_as_where),
    _plain("relu-as-threshold", _RELU, _relu_as_threshold),
    built("hardtanh-as-clamp", (_HARDTANH,), _hardtanh_as_clamp),
    built("hardtanh-in-two-steps", (_HARDTANH,), _hardtanh_in_two_steps),
    borrowed("gelu-by-erf", DecomposeGelu()),
    _plain("gelu-by-erfc", _GELU, _gelu_by_erfc),
    _plain("tanh-by-expm1", _TANH, _tanh_by_expm1),
    _plain("sigmoid-by-exp", _SIGMOID, _sigmoid_by_exp),
    _plain("sigmoid-by-logarithm", _SIGMOID, _sigmoid_by_logarithm),
    borrowed("silu-by-sigmoid", DecomposeSilu()),
    _plain("silu-by-exp", _SILU, _silu_by_exp),
    _plain("softplus-stable", _SOFTPLUS, _softplus_stable),
    built("leaky-relu-as-maximum", (_LEAKY,), _leaky_as_maximum, _has_small_slope),
    built("elu-as-where", (_ELU,), _elu_as_where, lambda n: n.args[1:] in ((), (1.0,))),
    _plain("hardswish-by-clamp", _HARDSWISH, _hardswish_by_clamp),
    _plain("abs-as-maximum", _ABS, _abs_as_maximum),
    _plain("exp-by-powers-of-two", _EXP, _exp_by_powers_of_two),
)
