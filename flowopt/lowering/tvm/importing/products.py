"""Matrix products. Half-precision ones are accumulated in float32 and rounded once, as torch's are."""

from collections.abc import Callable
from typing import Any

from flowopt.lowering.tvm.importing.elementwise import elementwise
from flowopt.lowering.tvm.importing.maker import Maker, Unsupported, Value, dtype_of, rank_of, shape_of, wide

Converter = Callable[..., Any]


def product(make: Maker, left: Any, right: Any) -> Any:
    """``relax.matmul``; of half-precision operands the result is float32."""
    from tvm import relax

    dtype = dtype_of(left)
    return make.emit(relax.op.matmul(left, right, out_dtype=wide(dtype) if wide(dtype) != dtype else None))


def _matmul(make: Maker, left: Any, right: Any) -> Any:
    return make.result(product(make, left, right))


def _linear(make: Maker, x: Any, weight: Any, bias: Any = None) -> Any:
    from tvm import relax

    turned = weight if rank_of(weight) == 1 else make.permute(weight, [1, 0])
    made = product(make, x, turned)
    if bias is not None:
        made = make.emit(relax.op.add(made, make.cast(bias, dtype_of(made))))
    return make.result(made)


def _addmm(make: Maker, added: Any, left: Any, right: Any, beta: Value = 1, alpha: Value = 1) -> Any:
    from tvm import relax

    made = product(make, left, right)
    dtype = dtype_of(made)
    if alpha != 1:
        made = make.emit(relax.op.multiply(made, make.as_tensor(alpha, dtype)))
    if beta == 0:
        return make.result(made)  # torch reads no NaN from what beta drops
    extra = make.cast(added, dtype)
    if beta != 1:
        extra = make.emit(relax.op.multiply(extra, make.as_tensor(beta, dtype)))
    return make.result(make.emit(relax.op.add(made, extra)))


def _outer(make: Maker, left: Any, right: Any) -> Any:
    from tvm import relax

    column = make.reshape(left, [*shape_of(left), 1])
    return elementwise(make, relax.op.multiply, column, right)


def _einsum(make: Maker, equation: str, operands: Any, path: Any = None) -> Any:
    """One operand: a permutation and a sum. Two: one batched product."""
    text = equation.replace(" ", "")
    if "." in text or "->" not in text:
        raise Unsupported(f"the equation {equation!r}")
    left, out = text.split("->")
    terms = left.split(",")
    if len(operands) > 2 or any(len(set(t)) != len(t) for t in (*terms, out)):
        raise Unsupported(f"the equation {equation!r}")
    reduced = [
        _summed(make, x, term, (*terms[:k], *terms[k + 1 :], out))
        for k, (x, term) in enumerate(zip(operands, terms, strict=True))
    ]
    if len(reduced) == 1:
        tensor, term = reduced[0]
        return make.result(make.permute(tensor, [term.index(c) for c in out]))
    return _einsum_pair(make, *reduced[0], *reduced[1], out)


def _summed(make: Maker, x: Any, term: str, elsewhere: tuple[str, ...]) -> tuple[Any, str]:
    """The operand without the axes that nothing else names."""
    from tvm import relax

    lone = [k for k, c in enumerate(term) if not any(c in other for other in elsewhere)]
    if not lone:
        return x, term
    total = make.emit(relax.op.sum(make.cast(x, wide(dtype_of(x))), axis=lone))
    return make.cast(total, dtype_of(x)), "".join(c for k, c in enumerate(term) if k not in lone)


def _einsum_pair(make: Maker, a: Any, in_a: str, b: Any, in_b: str, out: str) -> Any:
    sizes = dict(zip(in_b, shape_of(b), strict=True)) | dict(zip(in_a, shape_of(a), strict=True))
    batch = [c for c in in_a if c in in_b and c in out]
    inner = [c for c in in_a if c in in_b and c not in out]
    rows = [c for c in in_a if c not in in_b]
    columns = [c for c in in_b if c not in in_a]

    def count(letters: list[str]) -> Any:
        total: Any = 1
        for letter in letters:
            total = total * sizes[letter]
        return total

    def grouped(x: Any, term: str, *groups: list[str]) -> Any:
        turned = make.permute(x, [term.index(c) for group in groups for c in group])
        return make.reshape(turned, [count(group) for group in groups])

    made = product(make, grouped(a, in_a, batch, rows, inner), grouped(b, in_b, batch, inner, columns))
    order = [*batch, *rows, *columns]
    spread = make.reshape(made, [sizes[c] for c in order])
    return make.result(make.permute(spread, [order.index(c) for c in out]))


PRODUCTS: dict[str, Converter] = {
    **dict.fromkeys(("aten.matmul.default", "aten.mm.default", "aten.bmm.default"), _matmul),
    **dict.fromkeys(("aten.mv.default", "aten.dot.default", "aten.vdot.default"), _matmul),
    "aten.linear.default": _linear,
    **dict.fromkeys(("aten.addmm.default", "aten.baddbmm.default", "aten.addmv.default"), _addmm),
    **dict.fromkeys(("aten.outer.default", "aten.ger.default"), _outer),
    "aten.einsum.default": _einsum,
}
