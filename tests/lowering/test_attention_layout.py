"""Attention in its form of rank 3: what it takes in, what it must leave alone, and that it computes the same."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from flowopt.program.program import Program
from tests.lowering import models
from tests.lowering.build import build
from tests.passes.programs import Written

WIDTH, HEADS, SIZE = 32, 4, 8
# float32 sums of at most 64 products, in another order.
TOLERANCE = 2e-5


def heads(x: Tensor, count: int = HEADS) -> Tensor:
    return x.view(x.shape[0], x.shape[1], count, -1).transpose(1, 2)


def merged(x: Tensor) -> Tensor:
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], -1)


def repeated(x: Tensor, count: int) -> Tensor:
    """Each head beside its copies."""
    batch, few, length, size = x.shape
    return x.unsqueeze(2).expand(batch, few, count, length, size).reshape(batch, few * count, length, size)


def tiled(x: Tensor, count: int) -> Tensor:
    """All heads, then all heads again."""
    batch, few, length, size = x.shape
    return x.unsqueeze(1).expand(batch, count, few, length, size).reshape(batch, few * count, length, size)


def turned(x: Tensor, frequencies: Tensor) -> Tensor:
    """Rotary embedding as transformers write it."""
    angles = torch.arange(x.shape[2])[None, :, None].float() * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    half = torch.cat((-x[..., SIZE // 2 :], x[..., : SIZE // 2]), dim=-1)
    return x * angles.cos().unsqueeze(1) + half * angles.sin().unsqueeze(1)


attend = nn.functional.scaled_dot_product_attention


def program(forward: Callable[..., Tensor], kv_heads: int = HEADS) -> Program:
    layers: dict[str, Any] = {
        "q": nn.Linear(WIDTH, WIDTH),
        "k": nn.Linear(WIDTH, kv_heads * SIZE),
        "v": nn.Linear(WIDTH, kv_heads * SIZE),
        "o": nn.Linear(WIDTH, WIDTH, bias=False),
        "frequencies": 1.0 / 100.0 ** (torch.arange(0, SIZE, 2) / SIZE),
    }
    free = {"x": {0: "batch", 1: "length"}}
    return models.program(Written(forward, **layers), torch.randn(3, 5, WIDTH), dynamic=free)


def plain(m: Written, x: Tensor) -> Tensor:
    return m.o(merged(attend(heads(m.q(x)), heads(m.k(x)), heads(m.v(x)))))


def causal(m: Written, x: Tensor) -> Tensor:
    return m.o(merged(attend(heads(m.q(x)), heads(m.k(x)), heads(m.v(x)), is_causal=True, scale=0.5)))


def masked(m: Written, x: Tensor) -> Tensor:
    hidden = (x[:, :, 0] > -3.0)[:, None, None, :]
    return m.o(merged(attend(heads(m.q(x)), heads(m.k(x)), heads(m.v(x)), attn_mask=hidden)))


def grouped(m: Written, x: Tensor) -> Tensor:
    k, v = repeated(heads(m.k(x), 2), 2), repeated(heads(m.v(x), 2), 2)
    return m.o(merged(attend(heads(m.q(x)), k, v)))


def rotary(m: Written, x: Tensor) -> Tensor:
    q, k = (turned(heads(y), m.frequencies) for y in (m.q(x), m.k(x)))
    return m.o(merged(attend(q, k, heads(m.v(x)))))


def lowered(one: Program, path: Path) -> tuple[Any, Counter[str], list[onnx.NodeProto]]:
    artifact, _ = build(one, path / "artifact")
    graph = onnx.load(str(artifact.folder / "model.onnx"), load_external_data=False).graph
    return artifact, Counter(node.op_type for node in graph.node), list(graph.node)


def require_same(one: Program, artifact: Any) -> None:
    for batch, length in ((1, 2), (3, 5), (2, 9)):
        x = torch.randn(batch, length, WIDTH, generator=torch.Generator().manual_seed(length))
        torch.testing.assert_close(artifact.run(x), one.run(x), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("forward", "kv_heads"),
    [(plain, 4), pytest.param(causal, 4, marks=pytest.mark.slow), (masked, 4), (grouped, 2), (rotary, 4)],
    ids=["plain", "causal", "masked", "grouped", "rotary"],
)
def test_heads_stay_on_the_last_axis(forward: Callable[..., Tensor], kv_heads: int, tmp_path: Path) -> None:
    one = program(forward, kv_heads)
    artifact, counts, nodes = lowered(one, tmp_path)
    assert counts["Attention"] == 1 and counts["Transpose"] == 0
    (attention,) = (node for node in nodes if node.op_type == "Attention")
    attributes = {a.name: a.i for a in attention.attribute}
    assert (attributes["q_num_heads"], attributes["kv_num_heads"]) == (HEADS, kv_heads)
    # Angles are repeated along the batch, and the row of a mask for every query; keys and values are not.
    assert counts["Expand"] == {rotary: 2, masked: 1}.get(forward, 0)
    require_same(one, artifact)


def tiles(m: Written, x: Tensor) -> Tensor:
    k, v = tiled(heads(m.k(x), 2), 2), tiled(heads(m.v(x), 2), 2)
    return m.o(merged(attend(heads(m.q(x)), k, v)))


def inner_read(m: Written, x: Tensor) -> Tensor:
    inner = attend(heads(m.q(x)), heads(m.k(x)), heads(m.v(x)))
    return m.o(merged(inner)) + inner.sum()


def other_order(m: Written, x: Tensor) -> Tensor:
    q, k, v = (y.view(x.shape[0], x.shape[1], SIZE, HEADS).permute(0, 3, 1, 2) for y in (m.q(x), m.k(x), m.v(x)))
    return m.o(merged(attend(q, k, v)))


@pytest.mark.parametrize(
    ("forward", "kv_heads"),
    [(tiles, 2), pytest.param(inner_read, 4, marks=pytest.mark.slow), (other_order, 4)],
    ids=["tiles", "inner_read", "other_order"],
)
def test_other_forms_are_left_alone(forward: Callable[..., Tensor], kv_heads: int, tmp_path: Path) -> None:
    one = program(forward, kv_heads)
    artifact, _, nodes = lowered(one, tmp_path)
    (attention,) = (node for node in nodes if node.op_type == "Attention")
    assert "q_num_heads" not in {a.name for a in attention.attribute}
    require_same(one, artifact)
