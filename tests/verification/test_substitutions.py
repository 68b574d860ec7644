"""More rewrites than the planted ones, right and wrong, in one line each."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.nn import functional

from tests.verification.substitute import Build, aten, captured, judged, substitute

Body = Callable[[Tensor], Tensor]


def softmax_unshifted(edit: Any, node: fx.Node) -> fx.Node:
    exponential = edit.call(aten.exp.default, node.args[0])
    return edit.call(aten.div.Tensor, exponential, edit.call(aten.sum.dim_IntList, exponential, [-1], True))


def softmax_shifted(edit: Any, node: fx.Node) -> fx.Node:
    largest = edit.call(aten.amax.default, node.args[0], [-1], True)
    exponential = edit.call(aten.exp.default, edit.call(aten.sub.Tensor, node.args[0], largest))
    return edit.call(aten.div.Tensor, exponential, edit.call(aten.sum.dim_IntList, exponential, [-1], True))


def one_pass_variance(edit: Any, node: fx.Node) -> fx.Node:
    x = node.args[0]
    square = edit.call(aten.mean.dim, edit.call(aten.mul.Tensor, x, x), [-1], True)
    mean = edit.call(aten.mean.dim, x, [-1], True)
    return edit.call(aten.sub.Tensor, square, edit.call(aten.mul.Tensor, mean, mean))


def two_pass_variance(edit: Any, node: fx.Node) -> fx.Node:
    x = node.args[0]
    centred = edit.call(aten.sub.Tensor, x, edit.call(aten.mean.dim, x, [-1], True))
    return edit.call(aten.mean.dim, edit.call(aten.mul.Tensor, centred, centred), [-1], True)


def first_twin(edit: Any, node: fx.Node) -> fx.Node:
    """The first call like this one: common subexpression elimination."""
    return next(n for n in node.graph.nodes if (n.target, n.args) == (node.target, node.args))


def population(x: Tensor) -> Tensor:
    return x * torch.rsqrt(torch.var(x, -1, correction=0, keepdim=True) + 1e-5)


def doubled(x: Tensor) -> Tensor:
    y = -x * x
    return torch.exp(y) + torch.sin(torch.exp(y))


def bare_norm(x: Tensor) -> Tensor:
    return functional.layer_norm(x, (8,))


def normalized_by_hand(edit: Any, node: fx.Node) -> fx.Node:
    x = node.args[0]
    centred = edit.call(aten.sub.Tensor, x, edit.call(aten.mean.dim, x, [-1], True))
    variance = edit.call(aten.mean.dim, edit.call(aten.mul.Tensor, centred, centred), [-1], True)
    root = edit.call(aten.rsqrt.default, edit.call(aten.add.Tensor, variance, 1e-5))
    return edit.call(aten.mul.Tensor, centred, root)


def number(target: Any, *numbers: Any, **keywords: Any) -> Build:
    """The same input under another operator or with other numbers."""
    return lambda edit, node: edit.call(target, node.args[0], *numbers, **keywords)


def causal(x: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(x, x, x, is_causal=True)


def shifted_positions(x: Tensor) -> Tensor:
    positions = torch.arange(x.shape[1], device=x.device)
    return x * torch.cos(0.3 * positions).unsqueeze(-1) + torch.sin(0.3 * positions).unsqueeze(-1)


RIGHT: dict[str, tuple[Body, Any, Build]] = {
    "shifted softmax": (lambda x: torch.softmax(x, -1), aten.softmax.int, softmax_shifted),
    "two-pass variance": (population, aten.var.correction, two_pass_variance),
    "bare norm by hand": (bare_norm, aten.layer_norm.default, normalized_by_hand),
    "equal subexpressions": (doubled, aten.exp.default, first_twin),
    "equal norms": (lambda x: bare_norm(x) * torch.sigmoid(bare_norm(x)), aten.layer_norm.default, first_twin),
    "relu of relu": (lambda x: torch.relu(torch.relu(x)), aten.relu.default, lambda e, n: _inner(n, aten.relu.default)),
    "absolute value of an exponential": (lambda x: torch.exp(x).abs(), aten.abs.default, lambda e, n: n.args[0]),
    "clamp of a sigmoid": (
        lambda x: torch.sigmoid(x).clamp(0.0, 1.0),
        aten.clamp.default,
        lambda e, n: n.args[0],
    ),
    "root of a square of a relu": (
        lambda x: torch.relu(x).pow(2).sqrt(),
        aten.sqrt.default,
        lambda e, n: n.args[0].args[0],
    ),
    "square as product": (
        lambda x: x.pow(2),
        aten.pow.Tensor_Scalar,
        lambda e, n: e.call(aten.mul.Tensor, n.args[0], n.args[0]),
    ),
    "cosine by the half angle": (
        shifted_positions,
        aten.cos.default,
        lambda e, n: e.call(
            aten.rsub.Scalar,
            e.call(
                aten.mul.Tensor,
                e.call(aten.pow.Tensor_Scalar, e.call(aten.sin.default, e.call(aten.mul.Tensor, n.args[0], 0.5)), 2),
                2,
            ),
            1,
        ),
    ),
    "attention by hand": (
        lambda x: functional.scaled_dot_product_attention(x, x, x),
        aten.scaled_dot_product_attention.default,
        lambda e, n: e.call(
            aten.matmul.default,
            e.call(
                aten.softmax.int,
                e.call(
                    aten.mul.Tensor,
                    e.call(aten.matmul.default, n.args[0], e.call(aten.transpose.int, n.args[1], -2, -1)),
                    1 / math.sqrt(8),
                ),
                -1,
            ),
            n.args[2],
        ),
    ),
    "one product fewer": (
        lambda x: x * 2 + x * 3,
        aten.add.Tensor,
        lambda e, n: e.call(aten.mul.Tensor, n.args[0].args[0], 5),
    ),
    "a decision by another way": (
        lambda x: (x > 0).to(torch.float32) * x,
        aten.gt.Scalar,
        lambda e, n: e.call(aten.lt.Scalar, e.call(aten.neg.default, n.args[0]), 0),
    ),
}

WRONG: dict[str, tuple[Body, Any, Build]] = {
    "unshifted softmax": (lambda x: torch.softmax(x, -1), aten.softmax.int, softmax_unshifted),
    "softmax over another axis": (lambda x: torch.softmax(x, -1), aten.softmax.int, number(aten.softmax.int, 1)),
    "softmax over all samples": (lambda x: torch.softmax(x, 1), aten.softmax.int, number(aten.softmax.int, 0)),
    "one-pass variance": (population, aten.var.correction, one_pass_variance),
    "sample variance": (population, aten.var.correction, number(aten.var.correction, [-1], correction=1, keepdim=True)),
    "another epsilon": (bare_norm, aten.layer_norm.default, number(aten.layer_norm.default, [8], None, None, 1e-6)),
    "logarithm of a softmax": (
        lambda x: torch.log_softmax(x, -1),
        aten.log_softmax.int,
        lambda e, n: e.call(aten.log.default, e.call(aten.softmax.int, n.args[0], -1)),
    ),
    "naive softplus": (
        functional.softplus,
        aten.softplus.default,
        lambda e, n: e.call(aten.log.default, e.call(aten.add.Tensor, e.call(aten.exp.default, n.args[0]), 1.0)),
    ),
    "lost causality": (
        causal,
        aten.scaled_dot_product_attention.default,
        lambda e, n: e.call(aten.scaled_dot_product_attention.default, *n.args[:3]),
    ),
    "another scale": (
        lambda x: functional.scaled_dot_product_attention(x, x, x),
        aten.scaled_dot_product_attention.default,
        lambda e, n: e.call(aten.scaled_dot_product_attention.default, *n.args[:3], scale=0.35),
    ),
    "truncation for floor": (
        lambda x: torch.div(x, 3.0, rounding_mode="floor"),
        aten.div.Tensor_mode,
        number(aten.div.Tensor_mode, 3.0, rounding_mode="trunc"),
    ),
    "a lower upper limit": (functional.relu6, aten.relu6.default, number(aten.hardtanh.default, 0.0, 5.9)),
    "no upper limit": (functional.relu6, aten.relu6.default, number(aten.relu.default)),
    "half precision inside": (
        torch.sin,
        aten.sin.default,
        lambda e, n: e.call(
            aten._to_copy.default,
            e.call(aten.sin.default, e.call(aten._to_copy.default, n.args[0], dtype=torch.bfloat16)),
            dtype=torch.float32,
        ),
    ),
    "swapped order": (
        lambda x: torch.cat([x, 2 * x], -1)[..., 4:12],
        aten.cat.default,
        lambda e, n: e.call(aten.cat.default, list(reversed(n.args[0])), -1),
    ),
    "a leak across the batch": (
        torch.sin,
        aten.sin.default,
        lambda e, n: e.call(
            aten.add.Tensor,
            e.call(aten.sin.default, n.args[0]),
            e.call(aten.mul.Tensor, e.call(aten.mean.dim, n.args[0], [0], True), 1e-7),
        ),
    ),
    "a sum over the wrong half": (
        lambda x: x.flip(1),
        aten.flip.default,
        lambda e, n: e.call(aten.flip.default, n.args[0], [2]),
    ),
    "a decision at the edge": (
        lambda x: (torch.round(x) >= 1).to(torch.float32) * x,
        aten.ge.Scalar,
        lambda e, n: e.call(aten.gt.Scalar, n.args[0], 1),
    ),
    "shifted positions": (
        shifted_positions,
        aten.cos.default,
        lambda e, n: e.call(aten.cos.default, e.call(aten.add.Tensor, n.args[0], 0.3)),
    ),
}


def _inner(node: fx.Node, target: Any) -> fx.Node:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source if source.target is target else node


@pytest.mark.parametrize("name", RIGHT)
def test_keeps_a_right_substitution(name: str) -> None:
    body, anchor, build = RIGHT[name]
    record = judged(captured(body), substitute(anchor, build))
    assert record.outcome == "kept", record.reason
    assert record.verdict is not None
    assert not [n for n in record.verdict.notes if "not checked alone" in n], record.verdict.notes


@pytest.mark.parametrize("name", WRONG)
def test_catches_a_wrong_substitution(name: str) -> None:
    body, anchor, build = WRONG[name]
    record = judged(captured(body), substitute(anchor, build))
    assert record.outcome == "reverted"
    assert record.reason
