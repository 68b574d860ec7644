"""Comparisons, logic, bits, and tests for infinities and NaN."""

from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch._prims_common import ELEMENTWISE_TYPE_PROMOTION_KIND, elementwise_dtypes

from flowopt.lowering.tvm.importing.maker import Maker, Value, dtype_name, dtype_of, is_tensor, wide

Converter = Callable[..., Any]


def _compared(name: str) -> Converter:
    def comparison(make: Maker, x: Value, other: Value) -> Any:
        from tvm import relax

        common = _common_dtype(make.node)
        dtype = wide(dtype_name(common))
        if dtype == "bool":
            dtype = "int8"  # TVM orders no booleans
        operands = [make.as_tensor(v, dtype) for v in (_rounded(make, v, common) for v in (x, other))]
        if name == "not_equal":
            return make.not_equal(*operands)
        return make.emit(getattr(relax.op, name)(*operands))

    return comparison


def _rounded(make: Maker, value: Value, dtype: torch.dtype) -> Value:
    """An operand in the half-precision dtype that torch compares in: 0.1 is the half next to it."""
    if wide(dtype_name(dtype)) == dtype_name(dtype):
        return value
    if isinstance(value, (bool, int, float)):
        return torch.tensor(value, dtype=torch.float64).to(dtype).item()
    return make.cast(value, dtype_name(dtype)) if is_tensor(value) else value


def _common_dtype(node: fx.Node) -> torch.dtype:
    """The dtype that torch compares in."""
    recorded = [a.meta["val"] if isinstance(a, fx.Node) else a for a in node.args]
    # Any number of its kind stands for a free size: its own value would need a guard.
    operands = [0 if isinstance(r, torch.SymInt) else 0.0 if isinstance(r, torch.SymFloat) else r for r in recorded]
    kind = ELEMENTWISE_TYPE_PROMOTION_KIND.NO_OPMATH
    return elementwise_dtypes(*operands, type_promotion_kind=kind)[0]


def _logical(name: str) -> Converter:
    def logical(make: Maker, *operands: Value) -> Any:
        from tvm import relax

        return make.emit(getattr(relax.op, name)(*(make.as_tensor(x, "bool") for x in operands)))

    return logical


def _bits(name: str) -> Converter:
    def bitwise(make: Maker, *operands: Value) -> Any:
        from tvm import relax

        kind = "logical" if make.out_dtype == "bool" else "bitwise"
        operator = getattr(relax.op, f"{kind}_{name}")
        return make.emit(operator(*(make.as_tensor(x, make.out_dtype) for x in operands)))

    return bitwise


def _classified(name: str) -> Converter:
    def test(make: Maker, x: Any) -> Any:
        from tvm import relax

        if "float" not in dtype_of(x):
            return make.full(make.out_shape, name == "isfinite", "bool")
        # In float32 the half-precision dtypes have the same infinities and NaNs, and every target knows it.
        return make.emit(getattr(relax.op, name)(make.cast(x, wide(dtype_of(x)))))

    return test


def _each(names: tuple[str, ...], overloads: tuple[str, ...], converter: Converter) -> dict[str, Converter]:
    return {f"aten.{name}.{overload}": converter for name in names for overload in overloads}


_PAIRS = ("Tensor", "Scalar")

PREDICATES: dict[str, Converter] = {
    **_each(("eq",), _PAIRS, _compared("equal")),
    **_each(("ne",), _PAIRS, _compared("not_equal")),
    **_each(("lt",), _PAIRS, _compared("less")),
    **_each(("le",), _PAIRS, _compared("less_equal")),
    **_each(("gt",), _PAIRS, _compared("greater")),
    **_each(("ge",), _PAIRS, _compared("greater_equal")),
    **_each(("logical_and",), ("default",), _logical("logical_and")),
    **_each(("logical_or",), ("default",), _logical("logical_or")),
    **_each(("logical_xor",), ("default",), _logical("logical_xor")),
    **_each(("logical_not",), ("default",), _logical("logical_not")),
    **_each(("bitwise_and", "__and__"), _PAIRS, _bits("and")),
    **_each(("bitwise_or", "__or__"), _PAIRS, _bits("or")),
    **_each(("bitwise_xor", "__xor__"), _PAIRS, _bits("xor")),
    "aten.bitwise_not.default": _bits("not"),
    "aten.isnan.default": _classified("isnan"),
    "aten.isinf.default": _classified("isinf"),
    "aten.isfinite.default": _classified("isfinite"),
}
