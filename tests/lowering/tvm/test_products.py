"""Matrix products, einsum and attention, in every precision and with masks of every kind."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.lowering.tvm.compare import captured, require_equivalent, require_near, results

pytest.importorskip("tvm")


def _random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(dtype)


CASES: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "matrices": (lambda x, y: x @ y, (_random(3, 4), _random(4, 5))),
    "vectors": (lambda x, y: [x @ y, x[0] @ y, x[0].dot(y), torch.outer(y, x[0])], (_random(3, 4), _random(4))),
    "broadcast batches": (lambda x, y: x @ y, (_random(2, 1, 3, 4), _random(5, 4, 2))),
    "bmm": (torch.bmm, (_random(2, 3, 4), _random(2, 4, 5))),
    "integers": (lambda x, y: x.long() @ y.long(), (_random(3, 4) * 9, _random(4, 5) * 9)),
    "float64": (lambda x, y: x @ y, (_random(3, 64, dtype=torch.float64), _random(64, 5, dtype=torch.float64))),
    "addmm": (
        lambda x, y: [
            torch.addmm(x[0], x, y),
            torch.addmm(x, x, y, beta=0.5, alpha=2),
            torch.baddbmm(x[None], x[None], y[None]),
        ],
        (_random(4, 4), _random(4, 4)),
    ),
    "einsum of one": (lambda x: [torch.einsum("abc->cab", x), torch.einsum("abc->ca", x)], (_random(2, 3, 4),)),
    "einsum of two": (
        lambda x, y: [torch.einsum("bij,bjk->bik", x, y), torch.einsum("bij,bjk->kb", x, y)],
        (_random(2, 3, 4), _random(2, 4, 5)),
    ),
}
HALVES = [torch.float16, torch.bfloat16]


@pytest.fixture(scope="module")
def outputs() -> dict[str, list[tuple[Tensor, ...]]]:
    return results(CASES)


@pytest.mark.parametrize("name", CASES)
def test_gives_what_torch_gives(name: str, outputs: dict[str, list[tuple[Tensor, ...]]]) -> None:
    for found, eager, exact in outputs[name]:
        require_near(found, eager, exact, name)


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_products_are_summed_in_float32(dtype: torch.dtype) -> None:
    inputs = (_random(3, 512, dtype=dtype), _random(5, 512, dtype=dtype))
    require_equivalent(captured(lambda x, y: [F.linear(x, y), x @ y.t(), F.linear(x, y, y[:, 0])], *inputs), inputs)


MASKS: dict[str, Callable[[int, int], dict[str, Any]]] = {
    "none": lambda q, k: {},
    "scale": lambda q, k: {"scale": 0.3},
    "causal": lambda q, k: {"is_causal": True},
    "boolean": lambda q, k: {"attn_mask": _mask(q, k)},
    "boolean with hidden rows": lambda q, k: {"attn_mask": _mask(q, k) & (torch.arange(q) > 0)[:, None]},
    "floating": lambda q, k: {"attn_mask": _random(2, 1, q, k)},
    "floating with hidden rows": lambda q, k: {
        "attn_mask": _random(q, k).masked_fill((torch.arange(q) == 1)[:, None], float("-inf"))
    },
    "lowest numbers": lambda q, k: {"attn_mask": torch.zeros(q, k).masked_fill(_mask(q, k), torch.finfo().min)},
}


def _mask(queries: int, keys: int) -> Tensor:
    mask = _random(queries, keys) > 0
    mask[:, 0] = True
    return mask


def _attention(queries: int, keys: int) -> tuple[Callable[..., Any], tuple[Tensor, ...]]:
    options = [make(queries, keys) for make in MASKS.values()]
    inputs = (_random(2, 4, queries, 8), _random(2, 4, keys, 8))
    return lambda x, y: [F.scaled_dot_product_attention(x, y, y * 2, **o) for o in options], inputs


def test_attention_agrees_under_every_mask() -> None:
    cases = {f"{q} queries, {k} keys": _attention(q, k) for q, k in ((5, 5), (3, 7), (6, 2))}
    for name, outputs in results(cases).items():
        for mask, (found, eager, exact) in zip(MASKS, outputs, strict=True):
            require_near(found, eager, exact, f"{name}, {mask}")


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_attention_shares_keys_among_groups_of_heads(dtype: torch.dtype) -> None:
    inputs = (_random(2, 6, 5, 8, dtype=dtype), _random(2, 2, 7, 8, dtype=dtype))

    def function(x: Tensor, y: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, y, y, is_causal=True, enable_gqa=True)

    require_equivalent(captured(function, *inputs), inputs)


def test_attention_of_free_lengths_hides_later_keys() -> None:
    def function(x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x, is_causal=True)

    program = captured(function, _random(2, 4, 5, 8), free={"x": {0: "batch", 2: "length"}})
    require_equivalent(program, (_random(2, 4, 5, 8),), (_random(1, 4, 9, 8),))
