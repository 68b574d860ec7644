"""Activation functions and softmax; half-precision inputs are computed in float32, as torch's kernels do."""

from collections.abc import Callable
from typing import Any

from flowopt.lowering.tvm.importing.elementwise import unary
from flowopt.lowering.tvm.importing.maker import Maker, axis_of, dtype_of, rank_of, wide

Converter = Callable[..., Any]


def _whole(name: str) -> Converter:
    """An activation that Relax has as one operator."""

    def activation(make: Maker, x: Any) -> Any:
        from tvm import relax

        return make.result(make.emit(getattr(relax.op.nn, name)(make.cast(x, make.work_dtype))))

    return activation


def _relu(make: Maker, x: Any) -> Any:
    # Not relax.nn.relu: the larger of NaN and 0 is 0 there.
    return unary(lambda tirx, a: tirx.Select(a < tirx.const(0, a.ty.dtype), tirx.const(0, a.ty.dtype), a))(make, x)


def _gelu(make: Maker, x: Any, approximate: str = "none") -> Any:
    return _whole("gelu_tanh" if approximate == "tanh" else "gelu")(make, x)


def _softplus(make: Maker, x: Any, beta: float = 1, threshold: float = 20) -> Any:
    def softplus(tirx: Any, a: Any) -> Any:
        scaled = a * tirx.const(beta, a.ty.dtype)
        # The exponent is never positive: exp(scaled) overflows in the branch that is not taken.
        peak = tirx.max(scaled, tirx.const(0, a.ty.dtype))
        soft = (peak + tirx.log1p(tirx.exp(-tirx.abs(scaled)))) / tirx.const(beta, a.ty.dtype)
        return tirx.Select(scaled > tirx.const(threshold, a.ty.dtype), a, soft)

    return unary(softplus)(make, x)


def _leaky_relu(make: Maker, x: Any, negative_slope: float = 0.01) -> Any:
    def leaky(tirx: Any, a: Any) -> Any:
        return tirx.Select(a > tirx.const(0, a.ty.dtype), a, a * tirx.const(negative_slope, a.ty.dtype))

    return unary(leaky)(make, x)


def _elu(make: Maker, x: Any, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Any:
    def elu(tirx: Any, a: Any) -> Any:
        zero, one = tirx.const(0, a.ty.dtype), tirx.const(1, a.ty.dtype)
        low = tirx.exp(tirx.Select(a > zero, zero, a) * tirx.const(input_scale, a.ty.dtype)) - one
        low = low * tirx.const(alpha * scale, a.ty.dtype)
        return tirx.Select(a > zero, a * tirx.const(scale, a.ty.dtype), low)

    return unary(elu)(make, x)


def _hard_step(tirx: Any, a: Any) -> Any:
    """min(max(a + 3, 0), 6)"""
    zero, six = tirx.const(0, a.ty.dtype), tirx.const(6, a.ty.dtype)
    return _between(tirx, a + tirx.const(3, a.ty.dtype), zero, six)


def _between(tirx: Any, a: Any, low: Any, high: Any) -> Any:
    """NaN stays: it is neither below nor above."""
    return tirx.Select(a < low, low, tirx.Select(a > high, high, a))


def _clipped(make: Maker, x: Any, low: float, high: float) -> Any:
    def clipped(tirx: Any, a: Any) -> Any:
        return _between(tirx, a, tirx.const(low, a.ty.dtype), tirx.const(high, a.ty.dtype))

    return unary(clipped)(make, x)


def _hardtanh(make: Maker, x: Any, min_val: float = -1, max_val: float = 1) -> Any:
    return _clipped(make, x, min_val, max_val)


def _mish(tirx: Any, a: Any) -> Any:
    # tanh(log(1 + e)) = (e^2 + 2 e) / (e^2 + 2 e + 2) with e = exp(a); from 20 on it rounds to 1 in float64.
    e = tirx.exp(tirx.min(a, tirx.const(20, a.ty.dtype)))
    n = e * (e + tirx.const(2, a.ty.dtype))
    return a * (n / (n + tirx.const(2, a.ty.dtype)))


def _glu(make: Maker, x: Any, dim: int = -1) -> Any:
    from tvm import relax

    axis, shape = axis_of(dim, rank_of(x)), make.out_shape
    half = shape[axis]
    left = make.compute(shape, lambda i, s, a: a(*i), x, name="glu_left")
    right = make.compute(
        shape, lambda i, s, a: a(*i[:axis], i[axis] + s[0], *i[axis + 1 :]), x, sizes=[half], name="glu_right"
    )
    gate = make.emit(relax.op.sigmoid(make.cast(right, make.work_dtype)))
    return make.result(make.emit(relax.op.multiply(make.cast(left, make.work_dtype), gate)))


def _softmax(name: str) -> Converter:
    def softmax(make: Maker, x: Any, dim: int, option: Any = None) -> Any:
        """``option`` is a dtype (softmax.int) or whether half becomes float (_softmax): the result's dtype says it."""
        from tvm import relax

        if rank_of(x) == 0:
            return make.full((), 1 if name == "softmax" else 0, make.out_dtype)
        # With a dtype argument the cast comes first; without, the sum of halves is kept in float32.
        source = make.cast(x, wide(make.out_dtype if "float" in make.out_dtype else dtype_of(x)))
        return make.result(make.emit(getattr(relax.op.nn, name)(source, axis_of(dim, rank_of(x)))))

    return softmax


def _safe_softmax(make: Maker, x: Any, dim: int, dtype: Any = None) -> Any:
    from tvm import relax

    source = make.cast(x, make.work_dtype)
    axis = axis_of(dim, rank_of(x))
    zero = make.constant(0, make.work_dtype)
    seen = make.emit(relax.op.greater(source, make.constant(float("-inf"), make.work_dtype)))
    any_seen = make.emit(relax.op.max(make.cast(seen, "int8"), axis=[axis], keepdims=True))
    dead = make.emit(relax.op.equal(any_seen, make.constant(0, "int8")))
    soft = make.emit(relax.op.nn.softmax(relax.op.where(dead, zero, source), axis))
    return make.result(make.emit(relax.op.where(dead, zero, soft)))


def _log_sigmoid(tirx: Any, a: Any) -> Any:
    low = tirx.min(a, tirx.const(0, a.ty.dtype))
    return low - tirx.log1p(tirx.exp(-tirx.abs(a)))


ACTIVATIONS: dict[str, Converter] = {
    "aten.relu.default": _relu,
    "aten.relu6.default": lambda make, x: _clipped(make, x, 0, 6),
    "aten.gelu.default": _gelu,
    "aten.silu.default": _whole("silu"),
    "aten.softplus.default": _softplus,
    "aten.leaky_relu.default": _leaky_relu,
    "aten.elu.default": _elu,
    "aten.hardtanh.default": _hardtanh,
    "aten.hardsigmoid.default": unary(lambda tirx, a: _hard_step(tirx, a) / tirx.const(6, a.ty.dtype)),
    "aten.hardswish.default": unary(lambda tirx, a: a * _hard_step(tirx, a) / tirx.const(6, a.ty.dtype)),
    "aten.mish.default": unary(_mish),
    "aten.log_sigmoid.default": unary(_log_sigmoid),
    "aten.glu.default": _glu,
    "aten.softmax.int": _softmax("softmax"),
    "aten._softmax.default": _softmax("softmax"),
    "aten.log_softmax.int": _softmax("log_softmax"),
    "aten._log_softmax.default": _softmax("log_softmax"),
    "aten._safe_softmax.default": _safe_softmax,
}
