"""Products, quotients and powers written differently. NaN and infinities stay where they are."""

from typing import Any, Final

from torch import fx

from flowopt.ir.metadata import recorded_tensor, static_size
from flowopt.rewrite import Edit
from tests.mutation.right.kind import Kind, built
from tests.mutation.right.term import Term, arguments, aten, is_call, is_float, is_number, joined, raw_arguments

_ADD, _MUL, _DIV = aten.add.Tensor, aten.mul.Tensor, aten.div.Tensor
_MATMUL = (aten.matmul.default, aten.bmm.default)


def _distributed_product(edit: Edit, node: fx.Node) -> Term:
    """x * (a + b) = x * a + x * b."""
    a = arguments(edit, node)
    x, total = (a["self"], a["other"]) if is_call(node.args[1], _ADD) else (a["other"], a["self"])
    summands = arguments(edit, total.node)
    left, right = x * summands["self"], x * summands["other"]
    return left + right


def _multiplies_a_sum(node: fx.Node) -> bool:
    totals = [a for a in node.args[:2] if is_call(a, _ADD) and not a.kwargs]
    return len(totals) >= 1 and all(is_float(a) for a in node.args[:2]) and all(map(is_float, totals[0].args[:1]))


def _reassociated_product(edit: Edit, node: fx.Node) -> Term:
    """(a * b) * c = a * (b * c), or with the factors of the right side."""
    a = arguments(edit, node)
    inner, rest = (a["self"], a["other"]) if is_call(node.args[0], _MUL) else (a["other"], a["self"])
    factors = arguments(edit, inner.node)
    return factors["self"] * (rest * factors["other"])


def _multiplies_a_product(node: fx.Node) -> bool:
    inner = [a for a in node.args[:2] if is_call(a, _MUL)]
    return len(inner) >= 1 and all(is_float(a) for a in (*node.args[:2], *inner[0].args[:1]))


def _factored_cube(edit: Edit, node: fx.Node) -> Term:
    """x + c x^3 = x (1 + c x x), Horner's way."""
    x, scaled = (Term(edit, n) for n in node.args if isinstance(n, fx.Node))
    factor = raw_arguments(scaled.node)["other"]
    return x * (x * x * factor + 1.0)


def _is_odd_cubic(node: fx.Node) -> bool:
    x, scaled = node.args[:2]
    if not is_call(scaled, _MUL) or not is_number(scaled.args[1]):
        return False
    cube = scaled.args[0]
    return is_call(cube, aten.pow.Tensor_Scalar) and tuple(cube.args) == (x, 3)


def _matmul_transposed(edit: Edit, node: fx.Node) -> Term:
    """A B = (B^T A^T)^T."""
    a = arguments(edit, node)
    return (a["other"].transposed() @ a["self"].transposed()).transposed()


def _matmul_in_parts(edit: Edit, node: fx.Node) -> Term:
    """A B = A[:, :h] B[:h] + A[:, h:] B[h:]."""
    a = arguments(edit, node)
    n: Any = static_size(node.args[0], -1)
    parts = [a["self"].part(-1, *ends) @ a["other"].part(-2, *ends) for ends in ((0, n // 2), (n // 2, n))]
    return parts[0] + parts[1]


def _matmul_by_columns(edit: Edit, node: fx.Node) -> Term:
    """A B = (A B[:, :h], A B[:, h:])."""
    a = arguments(edit, node)
    n: Any = static_size(node.args[1], -1)
    return joined([a["self"] @ a["other"].part(-1, *ends) for ends in ((0, n // 2), (n // 2, n))], -1)


def _multiplies_matrices(node: fx.Node) -> bool:
    return all(t is not None and t.dim() >= 2 for t in map(recorded_tensor, node.args[:2]))


def _contracts_known(node: fx.Node) -> bool:
    return _multiplies_matrices(node) and (static_size(node.args[0], -1) or 0) >= 2


def _has_known_columns(node: fx.Node) -> bool:
    return _multiplies_matrices(node) and (static_size(node.args[1], -1) or 0) >= 2


def _division_to_product(edit: Edit, node: fx.Node) -> Term:
    """x / c = x * (1 / c)."""
    a = arguments(edit, node)
    return a["self"] * (1.0 / a["other"])


def _product_to_division(edit: Edit, node: fx.Node) -> Term:
    """x * c = x / (1 / c)."""
    a = arguments(edit, node)
    return a["self"] / (1.0 / a["other"])


def _scales_by_number(node: fx.Node) -> bool:
    """A float by a number whose reciprocal is a normal float32."""
    number: Any = node.args[1]
    moderate = is_number(number) and 1e-30 < abs(number) < 1e30
    return moderate and is_float(node.args[0]) and is_float(node)


def _power_as_product(edit: Edit, node: fx.Node) -> Term:
    """x^2 = x x and x^3 = x x x."""
    x: Term = arguments(edit, node)["self"]
    return x * x if node.args[1] == 2 else x * x * x


def _root_then_reciprocal(edit: Edit, node: fx.Node) -> Term:
    """rsqrt(v) = 1 / sqrt(v)."""
    root: Term = arguments(edit, node)["self"].op(aten.sqrt.default)
    return root.op(aten.reciprocal.default)


def _quotient_by_root(edit: Edit, node: fx.Node) -> Term:
    """x * rsqrt(v) = x / sqrt(v)."""
    a = arguments(edit, node)
    x, root = (a["self"], a["other"]) if is_call(node.args[1], aten.rsqrt.default) else (a["other"], a["self"])
    return x / arguments(edit, root.node)["self"].op(aten.sqrt.default)


def _multiplies_rsqrt(node: fx.Node) -> bool:
    return any(is_call(a, aten.rsqrt.default) for a in node.args[:2]) and all(is_float(a) for a in node.args[:2])


KINDS: Final[tuple[Kind, ...]] = (
    built("distributed-product", (_MUL,), _distributed_product, _multiplies_a_sum),
    built("reassociated-product", (_MUL,), _reassociated_product, _multiplies_a_product, keeps_16_bits=True),
    built("factored-cube", (_ADD,), _factored_cube, _is_odd_cubic),
    built("division-to-product", (_DIV,), _division_to_product, _scales_by_number, keeps_16_bits=True),
    built("product-to-division", (_MUL,), _product_to_division, _scales_by_number, keeps_16_bits=True),
    built("power-as-product", (aten.pow.Tensor_Scalar,), _power_as_product, lambda n: n.args[1] in (2, 3)),
    built("root-then-reciprocal", (aten.rsqrt.default,), _root_then_reciprocal),
    built("quotient-by-root", (_MUL,), _quotient_by_root, _multiplies_rsqrt),
    built("transposed-matmul", _MATMUL, _matmul_transposed, _multiplies_matrices, keeps_16_bits=True),
    built("matmul-in-parts", _MATMUL, _matmul_in_parts, _contracts_known, keeps_16_bits=True),
    built("matmul-by-columns", _MATMUL, _matmul_by_columns, _has_known_columns, keeps_16_bits=True),
)
