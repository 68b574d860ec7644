"""Arithmetic, comparisons and activations: torch's promotion, its roundings, and its values at the edges."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.lowering.tvm.compare import captured, compiled, require_near, results

pytest.importorskip("tvm")

_INF, _NAN = float("inf"), float("nan")
_WHOLE = torch.tensor([-7, -3, -1, 0, 2, 5, 9])
_DIVISORS = torch.tensor([3, -2, 4, 5, -3, 2, -4])
_EDGES = torch.tensor([-_INF, -2.5, -1.5, -0.5, -0.0, 0.5, 1.5, 2.5, 3.0, _INF, _NAN])
_SMALL = torch.tensor([1e-7, -1e-7, 1e-4, 0.3, -0.4, 2.0])

CASES: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "integers times a float": (lambda x: x * 0.1, (_WHOLE,)),
    "integers over integers": (lambda x, y: x / y, (_WHOLE, _DIVISORS)),
    "booleans plus a number": (lambda x: x + 1, (_WHOLE > 0,)),
    "booleans plus booleans": (lambda x, y: x + y, (_WHOLE > 0, _DIVISORS > 0)),
    "booleans times floats": (lambda x, y: x * y, (_WHOLE > 0, torch.randn(7))),
    "alpha": (lambda x, y: torch.add(x, y, alpha=3) - torch.sub(x, y, alpha=0.5), (torch.randn(7), torch.randn(7))),
    "reversed difference": (lambda x: 1 - x, (torch.randn(7),)),
    "int32 with int64": (lambda x, y: x.int() + y, (_WHOLE, _DIVISORS)),
    "float64 with float32": (lambda x, y: x.double() * y, (torch.randn(3), torch.randn(3))),
    "floor division of integers": (lambda x, y: x // y, (_WHOLE, _DIVISORS)),
    "floor division of floats": (lambda x, y: x // y, (_WHOLE * 0.3, _DIVISORS * 0.1)),
    "truncated division of integers": (lambda x, y: torch.div(x, y, rounding_mode="trunc"), (_WHOLE, _DIVISORS)),
    "truncated division of floats": (lambda x: torch.div(x, 0.7, rounding_mode="trunc"), (torch.randn(7) * 5,)),
    "remainder of integers": (lambda x, y: x % y, (_WHOLE, _DIVISORS)),
    "remainder of floats": (lambda x, y: x % y, (_WHOLE * 0.3, _DIVISORS * 0.7)),
    "fmod of integers": (torch.fmod, (_WHOLE, _DIVISORS)),
    "fmod of floats": (torch.fmod, (_WHOLE * 0.3, _DIVISORS * 0.7)),
    "half to even": (torch.round, (_EDGES[1:-2],)),
    "floor of integers": (lambda x: torch.floor(x) + torch.ceil(x) + torch.round(x), (_WHOLE,)),
    "trunc, ceil, sign": (lambda x: [x.trunc(), x.ceil(), x.floor(), x.sign()], (_EDGES[:-1],)),
    "integer powers": (lambda x: [x**2, x**3, x**5, x**0, x**-1, x**-2], (torch.randn(6) + 3,)),
    "powers of integers": (lambda x: [x**2, x**3], (_WHOLE,)),
    "roots": (lambda x: [x**0.5, x**-0.5, x**0.3, x.sqrt(), x.rsqrt()], (torch.rand(6) + 0.1,)),
    "powers by tensors": (lambda x, y: [x**y, 2.0**y], (torch.rand(6) + 0.1, torch.randn(6))),
    "rsqrt of integers": (lambda x: x.rsqrt(), (_WHOLE.abs() + 1,)),
    "clamp": (lambda x: [x.clamp(min=-0.5), x.clamp(max=0.2), x.clamp(-1, 1)], (torch.randn(9),)),
    "clamp by tensors": (lambda x, y: [torch.clamp(x, y), torch.clamp(x, max=y)], (torch.randn(9), torch.randn(9))),
    "clamp of integers": (lambda x: x.clamp(0, 4), (_WHOLE,)),
    "maximum and minimum": (lambda x, y: [torch.maximum(x, y), torch.minimum(x, y)], (_WHOLE, _DIVISORS)),
    "infinities and NaN": (lambda x: [x.isnan(), x.isinf(), x.isfinite()], (_EDGES,)),
    "infinities of integers": (lambda x: [x.isnan(), x.isinf(), x.isfinite()], (_WHOLE,)),
    "comparisons with a number": (lambda x: [x < 0.5, x <= 2, x == 3, x != 3, x > -1, x >= 2.5], (_EDGES,)),
    "integers compared with a float": (lambda x: [x < 2.5, x >= 1.5, x == 2.0], (_WHOLE,)),
    "halves compared with a number": (
        lambda x: [x == 0.1, x < 0.1, x >= 0.1, x.bfloat16() == 0.1, x < 1e6],
        (torch.tensor([0.1, 0.2], dtype=torch.float16),),
    ),
    "lowest integer over -1": (
        lambda x: [x % -1, torch.fmod(x, -1), (x + 1) // -1],
        (torch.tensor([torch.iinfo(torch.int64).min, 7]),),
    ),
    "negative bytes": (lambda x: -x, (torch.tensor([0, 1, 200], dtype=torch.uint8),)),
    "booleans compared": (lambda x, y: [x == y, x != y, x < y], (_WHOLE > 0, _DIVISORS > 0)),
    "logic": (lambda x, y: [x & y, x | y, x ^ y, ~x, x.logical_not()], (_WHOLE > 0, _DIVISORS > 0)),
    "logic of numbers": (
        lambda x, y: [x.logical_and(y), x.logical_or(y), x.logical_xor(y), x.logical_not()],
        (_WHOLE, _WHOLE.flip(0) - 2),
    ),
    "bits": (lambda x, y: [x & y, x | y, x ^ y, ~x, x & 3], (_WHOLE, _DIVISORS)),
    "where with numbers": (lambda x: [torch.where(x > 0, x, 0), torch.where(x > 0, -1.5, x)], (torch.randn(7),)),
    "where with a lowest number": (lambda x: torch.where(x > 0, x, torch.finfo(x.dtype).min), (torch.randn(7),)),
    "where promotes": (lambda x, y: torch.where(x > 0, x, y), (_WHOLE, torch.randn(7))),
    "where broadcasts": (lambda x, y: torch.where(x > 0, y, 0.0), (torch.randn(3, 1), torch.randn(2, 1, 4))),
    "masked fill": (lambda x: x.masked_fill(x > 0, -_INF), (torch.randn(3, 4),)),
    "masked fill of integers": (lambda x: x.masked_fill(x > 0, -1), (_WHOLE,)),
    "to boolean": (lambda x: x.bool(), (_WHOLE * 2,)),
    "floats to boolean": (lambda x: x.bool(), (torch.tensor([0.0, 0.3, -0.2, _NAN]),)),
    "floats to integers": (lambda x: x.long(), (torch.randn(9) * 4,)),
    "booleans to floats": (lambda x: [x.float(), x.long()], (_WHOLE > 0,)),
    "small logarithms": (lambda x: [torch.log1p(x), torch.expm1(x)], (_SMALL,)),
    "logarithms": (lambda x: [x.log(), x.log2(), x.log10(), x.exp2()], (torch.rand(9) + 0.01,)),
    "trigonometry": (
        lambda x: [x.sin(), x.cos(), x.tan(), x.asin(), x.acos(), x.atan(), x.sinh(), x.cosh(), x.atanh()],
        (torch.linspace(-0.95, 0.95, 9),),
    ),
    "large angles": (lambda x: [x.sin(), x.cos()], (torch.linspace(-3000, 3000, 9),)),
    "atan2": (torch.atan2, (torch.randn(9), torch.randn(9))),
    "erf and exp": (lambda x: [x.erf(), x.exp(), x.tanh(), x.sigmoid()], (torch.linspace(-6, 6, 41),)),
    "saturated": (lambda x: [x.tanh(), x.sigmoid(), F.softplus(x)], (torch.tensor([-200.0, -90.0, 90.0, 200.0]),)),
    "reciprocal and neg": (lambda x: [x.reciprocal(), -x, x.abs()], (torch.randn(9),)),
    "abs of integers": (lambda x: [x.abs(), x.sign(), -x], (_WHOLE,)),
    "addcmul": (
        lambda x, y: [torch.addcmul(x, y, x, value=0.5), torch.lerp(x, y, 0.3)],
        (torch.randn(4), torch.randn(4)),
    ),
    "gelu": (lambda x: [F.gelu(x), F.gelu(x, approximate="tanh")], (torch.linspace(-6, 6, 41),)),
    "relu family": (
        lambda x: [F.relu(x), F.relu6(x * 4), F.leaky_relu(x, 0.2), F.elu(x, 0.7), F.selu(x), F.celu(x, 1.3)],
        (torch.linspace(-3, 3, 13),),
    ),
    "soft family": (
        lambda x: [F.softplus(x, 2.0, 5.0), F.silu(x), F.mish(x), F.logsigmoid(x), F.hardswish(x), F.hardsigmoid(x)],
        (torch.linspace(-9, 9, 37),),
    ),
    "small soft values": (
        lambda x: [f(x[k]) for f in (F.softplus, lambda y: F.logsigmoid(-y)) for k in range(3)],
        (torch.tensor([-20.0, -25.0, -60.0]),),
    ),
    "large mish": (F.mish, (torch.tensor([1e30, -1e30]),)),
    "hardtanh": (lambda x: F.hardtanh(x, -0.3, 0.8), (torch.randn(9),)),
    "prelu": (F.prelu, (torch.randn(2, 3, 4), torch.rand(3))),
    "glu": (lambda x: F.glu(x, 1), (torch.randn(2, 6, 3),)),
    "softmax": (lambda x: [x.softmax(0), x.softmax(-1), x.log_softmax(1)], (torch.randn(3, 5) * 30,)),
    "softmax of integers in a dtype": (lambda x: x.softmax(-1, dtype=torch.float32), (_WHOLE.reshape(1, 7),)),
    "softmax with infinities": (lambda x: x.softmax(-1), (torch.tensor([[0.0, -_INF, 1.0], [-_INF, -_INF, 2.0]]),)),
}


@pytest.fixture(scope="module")
def outputs() -> dict[str, list[tuple[Tensor, ...]]]:
    return results(CASES)


@pytest.mark.parametrize("name", CASES)
def test_gives_what_torch_gives(name: str, outputs: dict[str, list[tuple[Tensor, ...]]]) -> None:
    for found, eager, exact in outputs[name]:
        require_near(found, eager, exact, name)


def test_an_integer_over_zero_ends_no_process() -> None:
    program = captured(lambda x, y: [x // y, x % y, torch.div(x, y, rounding_mode="trunc")], _WHOLE, _DIVISORS)
    zeros = dict(zip((i.name for i in program.inputs), (_WHOLE, _DIVISORS * 0), strict=True))
    assert all(found.shape == _WHOLE.shape for found in compiled(program)(zeros).values())


def test_other_precisions_round_once() -> None:
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))

    def function(x: Tensor) -> Any:
        made = [x * 0.1, x + x, x.exp(), F.gelu(x), F.silu(x), x.softmax(-1), x.sum(-1), x.mean(0), x > 0.1]
        return [
            *made,
            x.float(),
            x.cumsum(0),
            F.layer_norm(x, (8,)),
            F.rms_norm(x, (8,)),
            x @ x.t(),
            x.masked_fill(x > 0, -_INF),
        ]

    dtypes = (torch.float16, torch.bfloat16, torch.float64)
    for name, outputs in results({str(dtype): (function, (x.to(dtype),)) for dtype in dtypes}).items():
        for k, (found, eager, exact) in enumerate(outputs):
            require_near(found, eager, exact, f"{name}, output {k}")
