"""Attention as people write it, with a bias on its values."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.passes.programs import Written, randomised

WIDTH, HEADS = 12, 4
_LOWEST = torch.finfo(torch.float32).min


def attention(form: str, *, bias: bool = True, seed: int = 0) -> Written:
    """One of ``FORMS``, with an output projection that has a bias or none."""
    groups = 2 if "grouped" in form else HEADS
    parts: dict[str, Any] = {
        "query": nn.Linear(WIDTH, WIDTH),
        "key": nn.Linear(WIDTH, groups * WIDTH // HEADS),
        "value": nn.Linear(WIDTH, groups * WIDTH // HEADS),
        "out": nn.Linear(WIDTH, 7, bias=bias),
        "second": nn.Linear(WIDTH, 5),
        "packed": nn.Linear(WIDTH, 3 * WIDTH),
        "visible": torch.ones(5, 5, dtype=torch.bool).tril(),
        "hiding": torch.ones(5, 5, dtype=torch.bool).tril(-1),
    }
    return randomised(Written(FORMS[form], **parts), seed)


def heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (-1, WIDTH // HEADS)).transpose(1, 2)


def projected(m: Written, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    y = x if y is None else y
    return heads(m.query(x)), heads(m.key(y)), heads(m.value(y))


def merged(y: Tensor) -> Tensor:
    return y.transpose(1, 2).flatten(2)


def library(m: Written, x: Tensor, **options: Any) -> Tensor:
    return merged(F.scaled_dot_product_attention(*projected(m, x), **options))


def written(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    weights = F.softmax(scores if mask is None else scores.masked_fill(mask, -math.inf), -1)
    return merged(weights @ v)


def _packed(m: Written, x: Tensor) -> Tensor:
    q, k, v = m.packed(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    returned: Tensor = m.out(merged(F.scaled_dot_product_attention(q, k, v)))
    return returned


def _written_grouped(m: Written, x: Tensor) -> Tensor:
    q, k, v = projected(m, x)
    k, v = k.repeat_interleave(2, 1), v[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1, 2)
    returned: Tensor = m.out(written(q, k, v))
    return returned


def _stacked(m: Written, x: Tensor) -> Tensor:
    """Batch and heads as one axis, and ``bmm``."""
    q, k, v = (t.flatten(0, 1) for t in projected(m, x))
    y = torch.bmm(F.softmax(torch.bmm(q, k.transpose(1, 2)), -1), v)
    returned: Tensor = m.out(merged(y.unflatten(0, (-1, HEADS))))
    return returned


def _with_mask(mask: Callable[[Written, Tensor], Tensor]) -> Callable[[Written, Tensor], Tensor]:
    def forward(m: Written, x: Tensor) -> Tensor:
        returned: Tensor = m.out(library(m, x, attn_mask=mask(m, x)))
        return returned

    return forward


def _where(m: Written, x: Tensor) -> Tensor:
    return torch.where(x[:, None, None, :, 0] > 0, 0.0, _LOWEST).expand(-1, 1, 5, -1)


def _filled(m: Written, x: Tensor) -> Tensor:
    hidden = x[:, None, None, :, 0] > 0
    return torch.zeros(hidden.shape).masked_fill(hidden, _LOWEST).expand(-1, 1, 5, -1)


def _two_outputs(m: Written, x: Tensor) -> list[Tensor]:
    y = library(m, x)
    return [m.out(y), m.second(y[:, 0])]


def _called_twice(m: Written, x: Tensor) -> list[Tensor]:
    return [m.out(library(m, x)), torch.sin(m.value(x))]


def _crossed(m: Written, x: Tensor, y: Tensor) -> Tensor:
    returned: Tensor = m.out(merged(F.scaled_dot_product_attention(*projected(m, x, y))))
    return returned


FORMS: dict[str, Callable[..., Any]] = {
    "library": lambda m, x: m.out(library(m, x)),
    "causal": lambda m, x: m.out(library(m, x, is_causal=True)),
    "grouped": lambda m, x: m.out(library(m, x, enable_gqa=True)),
    "written": lambda m, x: m.out(written(*projected(m, x))),
    "written-grouped": _written_grouped,
    "written-masked": lambda m, x: m.out(written(*projected(m, x), ~m.visible)),
    "stacked": _stacked,
    "packed": _packed,
    "stored-mask": _with_mask(lambda m, x: m.visible),
    "repeated-mask": _with_mask(lambda m, x: m.visible[:, :1].expand(x.shape[0], 1, 5, 5)),
    "hiding-mask": _with_mask(lambda m, x: m.hiding),
    "computed-mask": _with_mask(lambda m, x: (x[:, None, :, :1] + x[:, None, None, :, 0]) > 0),
    "where-mask": _with_mask(_where),
    "filled-mask": _with_mask(_filled),
    "infinite-mask": _with_mask(
        lambda m, x: torch.where(x[:, None, None, :, 0] > 0, 0.0, -math.inf).expand(-1, 1, 5, -1)
    ),
    "added-masks": _with_mask(lambda m, x: _where(m, x) + _filled(m, x)),
    "two-outputs": _two_outputs,
    "called-twice": _called_twice,
    "crossed": _crossed,
}
