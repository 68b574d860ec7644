"""Arithmetic and functions of one element: torch's promotion of dtypes, then one Relax operator each."""

from collections.abc import Callable
from typing import Any

from flowopt.lowering.tvm.importing.maker import Maker, Unsupported, Value, is_tensor, rank_of, shape_of

Converter = Callable[..., Any]


def relax_operator(name: str) -> Callable[..., Any]:
    """The Relax operator of a name, looked up when it is first called: tvm is imported late."""

    def operator(*operands: Any) -> Any:
        from tvm import relax

        return getattr(relax.op, name)(*operands)

    return operator


def elementwise(make: Maker, operator: Callable[..., Any], *operands: Value) -> Any:
    """An operator on operands in the dtype of the result (float32 for half-precision results)."""
    tensors = [make.as_tensor(x, make.work_dtype) for x in operands]
    return make.result(make.emit(operator(*tensors)))


def _plain(name: str) -> Converter:
    return lambda make, *operands: elementwise(make, relax_operator(name), *operands)


def _add(make: Maker, x: Value, other: Value, alpha: Value = 1) -> Any:
    if make.out_dtype == "bool":
        return elementwise(make, relax_operator("logical_or"), x, other)
    return elementwise(make, relax_operator("add"), x, _scaled(make, other, alpha))


def _sub(make: Maker, x: Value, other: Value, alpha: Value = 1) -> Any:
    return elementwise(make, relax_operator("subtract"), x, _scaled(make, other, alpha))


def _rsub(make: Maker, x: Value, other: Value, alpha: Value = 1) -> Any:
    return elementwise(make, relax_operator("subtract"), other, _scaled(make, x, alpha))


def _scaled(make: Maker, x: Value, alpha: Value) -> Value:
    if isinstance(alpha, (int, float)) and alpha == 1:
        return x
    from tvm import relax

    dtype = make.work_dtype
    return make.emit(relax.op.multiply(make.as_tensor(x, dtype), make.as_tensor(alpha, dtype)))


def _mul(make: Maker, x: Value, other: Value) -> Any:
    return elementwise(make, relax_operator("logical_and" if make.out_dtype == "bool" else "multiply"), x, other)


def _addc(name: str) -> Converter:
    def addc(make: Maker, x: Value, one: Value, other: Value, value: Value = 1) -> Any:
        def combined(a: Any, b: Any, c: Any, v: Any) -> Any:
            return relax_operator("add")(a, relax_operator("multiply")(v, relax_operator(name)(b, c)))

        return elementwise(make, combined, x, one, other, value)

    return addc


def _lerp(make: Maker, x: Value, end: Value, weight: Value) -> Any:
    return elementwise(
        make,
        lambda a, b, w: relax_operator("add")(a, relax_operator("multiply")(w, relax_operator("subtract")(b, a))),
        x,
        end,
        weight,
    )


def _clamp(make: Maker, x: Value, low: Value = None, high: Value = None) -> Any:
    made = make.as_tensor(x, make.work_dtype)
    for bound, name in ((low, "maximum"), (high, "minimum")):
        if bound is not None:
            made = _further(make, name, made, make.as_tensor(bound, make.work_dtype))
    return make.result(made)


def _extreme(name: str) -> Converter:
    def converter(make: Maker, x: Value, other: Value) -> Any:
        one, rest = (make.as_tensor(value, make.work_dtype) for value in (x, other))
        return make.broadcast(make.result(_further(make, name, one, rest)), make.out_shape)

    return converter


def _further(make: Maker, name: str, one: Any, other: Any) -> Any:
    """The larger or smaller of two; NaN if either is: TVM's own comparison takes the second where the first is NaN."""
    from tvm import relax

    found = make.emit(relax_operator(name)(one, other))
    if "float" not in make.work_dtype:
        return found
    return make.emit(relax.op.where(make.emit(relax.op.isnan(one)), one, found))


def _abs(make: Maker, x: Any) -> Any:
    return x if make.out_dtype == "bool" else elementwise(make, relax_operator("abs"), x)


def _neg(make: Maker, x: Any) -> Any:
    if make.out_dtype.startswith("uint"):
        return elementwise(make, relax_operator("subtract"), 0, x)  # relax.negative refuses them
    return elementwise(make, relax_operator("negative"), x)


def unary(function: Callable[..., Any]) -> Converter:
    """A function of one element that Relax has no operator for, or a wrong one: ``function(tirx, element)``."""

    def converter(make: Maker, x: Any) -> Any:
        from tvm import tirx

        operand = make.as_tensor(x, make.work_dtype)
        made = make.compute(make.out_shape, lambda i, _, a: function(tirx, a(*i)), operand, name="unary")
        return make.result(made)

    return converter


def _on_floats(name: str) -> Converter:
    """Rounding of an integer is the integer itself."""
    return lambda make, x: elementwise(make, relax_operator(name), x) if is_float(make.out_dtype) else x


def _round(make: Maker, x: Any, decimals: int = 0) -> Any:
    if decimals:
        raise Unsupported("rounding to decimals")
    # Ties to even; relax.round takes them away from zero on some targets.
    return unary(lambda tirx, a: tirx.nearbyint(a))(make, x) if is_float(make.out_dtype) else x


def _where(make: Maker, condition: Any, x: Value, other: Value) -> Any:
    from tvm import relax

    test = make.cast(condition, "bool")
    chosen, rest = (make.as_tensor(v, make.out_dtype) for v in (x, other))
    return make.broadcast(make.emit(relax.op.where(test, chosen, rest)), make.out_shape)


def _masked_fill(make: Maker, x: Any, mask: Any, value: Value) -> Any:
    return _where(make, mask, value, x)


def is_float(dtype: str) -> bool:
    return "float" in dtype


def _prelu(make: Maker, x: Any, weight: Any) -> Any:
    from tvm import relax

    shape = [1] * rank_of(x)
    if rank_of(x) > 1:
        shape[1] = shape_of(weight)[0] if rank_of(weight) else 1
    slope = make.reshape(make.as_tensor(weight, make.work_dtype), shape) if is_tensor(weight) else weight
    return elementwise(
        make,
        lambda a, s: relax.op.where(relax.op.greater(a, make.constant(0, make.work_dtype)), a, relax.op.multiply(a, s)),
        x,
        slope,
    )


def _log1p(tirx: Any, a: Any) -> Any:
    return tirx.log1p(a)


def _expm1(tirx: Any, a: Any) -> Any:
    # Near zero exp(a) - 1 cancels; (u - 1) a / log(u) with u = exp(a) does not (Kahan).
    one = tirx.const(1, a.ty.dtype)
    u = tirx.exp(a)
    far = tirx.any(u <= one / 4, u >= one * 4)
    near = tirx.Select(u == one, a, (u - one) * a / tirx.Select(u == one, one, tirx.log(u)))
    return tirx.Select(far, u - one, near)


_SAME_NAME = "exp log sin cos tan sqrt rsqrt tanh sigmoid erf asin acos atan sinh cosh asinh acosh atanh atan2".split()

ELEMENTWISE: dict[str, Converter] = {
    **{f"aten.{name}.default": _plain(name) for name in _SAME_NAME},
    **dict.fromkeys(("aten.add.Tensor", "aten.add.Scalar"), _add),
    **dict.fromkeys(("aten.sub.Tensor", "aten.sub.Scalar"), _sub),
    **dict.fromkeys(("aten.rsub.Tensor", "aten.rsub.Scalar"), _rsub),
    **dict.fromkeys(("aten.mul.Tensor", "aten.mul.Scalar"), _mul),
    **dict.fromkeys(("aten.div.Tensor", "aten.div.Scalar"), _plain("divide")),
    **dict.fromkeys(("aten.maximum.default", "aten.max.other"), _extreme("maximum")),
    **dict.fromkeys(("aten.minimum.default", "aten.min.other"), _extreme("minimum")),
    **dict.fromkeys(("aten.clamp.default", "aten.clamp.Tensor"), _clamp),
    **dict.fromkeys(("aten.clamp_min.default", "aten.clamp_min.Tensor"), _clamp),
    **dict.fromkeys(
        ("aten.clamp_max.default", "aten.clamp_max.Tensor"), lambda make, x, high: _clamp(make, x, None, high)
    ),
    **dict.fromkeys(("aten.lerp.Scalar", "aten.lerp.Tensor"), _lerp),
    **dict.fromkeys(("aten.where.self", "aten.where.Scalar"), _where),
    **dict.fromkeys(("aten.where.ScalarOther", "aten.where.ScalarSelf"), _where),
    **dict.fromkeys(("aten.masked_fill.Scalar", "aten.masked_fill.Tensor"), _masked_fill),
    "aten.addcmul.default": _addc("multiply"),
    "aten.addcdiv.default": _addc("divide"),
    "aten.abs.default": _abs,
    "aten.neg.default": _neg,
    "aten.sign.default": _plain("sign"),
    "aten.reciprocal.default": lambda make, x: elementwise(make, relax_operator("divide"), 1, x),
    "aten.floor.default": _on_floats("floor"),
    "aten.ceil.default": _on_floats("ceil"),
    "aten.trunc.default": _on_floats("trunc"),
    "aten.round.default": _round,
    "aten.round.decimals": _round,
    "aten.prelu.default": _prelu,
    "aten._prelu_kernel.default": _prelu,
    "aten.log1p.default": unary(_log1p),
    "aten.expm1.default": unary(_expm1),
    "aten.log2.default": unary(lambda tirx, a: tirx.log2(a)),
    "aten.log10.default": unary(lambda tirx, a: tirx.log10(a)),
    "aten.exp2.default": unary(lambda tirx, a: tirx.exp2(a)),
}
