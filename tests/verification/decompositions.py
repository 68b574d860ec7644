"""Norms and softmaxes in single operators, of one input."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

from tests.verification.substitute import Build, aten

# What is built of one node; ``Any`` because a node's argument is one of many things.
Formula = Callable[[Any, Any], fx.Node]


def every_kernel(x: Tensor) -> Tensor:
    """Each of the kernels once, so that one captured program serves all."""
    statistics = torch.logsumexp(x, -1, keepdim=True) + torch.var(x, -1, correction=0, keepdim=True)
    norms = functional.layer_norm(x, (8,)) + functional.rms_norm(x, (8,), eps=1e-5)
    weights = torch.softmax(x, -1) + torch.log_softmax(x, -1)
    return statistics + norms + weights + functional.scaled_dot_product_attention(x, x, x)


def wide(edit: Any, node: Any) -> fx.Node:
    return edit.call(aten._to_copy.default, node, dtype=torch.float32)


def narrow(edit: Any, node: Any, like: fx.Node) -> fx.Node:
    return edit.call(aten._to_copy.default, node, dtype=like.meta["val"].dtype)


def with_casts(formula: Formula) -> Build:
    """The formula of the first input, in float32 inside."""
    return lambda edit, node: narrow(edit, formula(edit, wide(edit, node.args[0])), node)


def without_casts(formula: Formula) -> Build:
    return lambda edit, node: formula(edit, node.args[0])


def mean(edit: Any, x: Any) -> fx.Node:
    return edit.call(aten.mean.dim, x, [-1], True)


def total(edit: Any, x: Any) -> fx.Node:
    return edit.call(aten.sum.dim_IntList, x, [-1], True)


def squares(edit: Any, x: Any) -> fx.Node:
    return edit.call(aten.mul.Tensor, x, x)


def root(edit: Any, variance: Any) -> fx.Node:
    return edit.call(aten.rsqrt.default, edit.call(aten.add.Tensor, variance, 1e-5))


def centred(edit: Any, x: Any) -> fx.Node:
    return edit.call(aten.sub.Tensor, x, mean(edit, x))


def variance(edit: Any, x: Any) -> fx.Node:
    return mean(edit, squares(edit, centred(edit, x)))


def layer_norm(edit: Any, x: Any) -> fx.Node:
    return edit.call(aten.mul.Tensor, centred(edit, x), root(edit, variance(edit, x)))


def norm_by_division(edit: Any, x: Any) -> fx.Node:
    shifted = edit.call(aten.add.Tensor, variance(edit, x), 1e-5)
    return edit.call(aten.div.Tensor, centred(edit, x), edit.call(aten.sqrt.default, shifted))


def norm_by_kernel_of_variance(edit: Any, x: Any) -> fx.Node:
    found = edit.call(aten.var.correction, x, [-1], correction=0, keepdim=True)
    return edit.call(aten.mul.Tensor, centred(edit, x), root(edit, found))


def rms_norm(edit: Any, x: Any) -> fx.Node:
    square = edit.call(aten.pow.Tensor_Scalar, x, 2)
    return edit.call(aten.mul.Tensor, x, root(edit, mean(edit, square)))


def norm_by_product(edit: Any, x: Any) -> fx.Node:
    """Squares that no operator shows: a row times itself."""
    row, column = (edit.call(aten.unsqueeze.default, x, axis) for axis in (-2, -1))
    square = edit.call(aten.squeeze.dim, edit.call(aten.matmul.default, row, column), -1)
    return edit.call(aten.mul.Tensor, x, root(edit, edit.call(aten.mul.Tensor, square, 1 / 8)))


def shifted(edit: Any, x: Any) -> fx.Node:
    return edit.call(aten.sub.Tensor, x, edit.call(aten.amax.default, x, [-1], True))


def softmax(edit: Any, x: Any) -> fx.Node:
    exponential = edit.call(aten.exp.default, shifted(edit, x))
    return edit.call(aten.div.Tensor, exponential, total(edit, exponential))


def unshifted_softmax(edit: Any, x: Any) -> fx.Node:
    exponential = edit.call(aten.exp.default, x)
    return edit.call(aten.mul.Tensor, exponential, edit.call(aten.reciprocal.default, total(edit, exponential)))


def softmax_by_logarithm(edit: Any, x: Any) -> fx.Node:
    difference = edit.call(aten.sub.Tensor, x, edit.call(aten.logsumexp.default, x, [-1], True))
    return edit.call(aten.exp.default, difference)


def logarithm(edit: Any, x: Any) -> fx.Node:
    return edit.call(aten.log.default, total(edit, edit.call(aten.exp.default, x)))


def log_softmax(edit: Any, x: Any) -> fx.Node:
    y = shifted(edit, x)
    return edit.call(aten.sub.Tensor, y, logarithm(edit, y))


def attention(edit: Any, x: Any, weigh: Formula = softmax) -> fx.Node:
    scores = edit.call(aten.matmul.default, x, edit.call(aten.transpose.int, x, -2, -1))
    weights = weigh(edit, edit.call(aten.mul.Tensor, scores, 8**-0.5))
    return edit.call(aten.matmul.default, weights, x)


DECOMPOSITIONS: dict[Formula, Any] = {
    layer_norm: aten.layer_norm.default,
    norm_by_division: aten.layer_norm.default,
    norm_by_kernel_of_variance: aten.layer_norm.default,
    rms_norm: aten.rms_norm.default,
    norm_by_product: aten.rms_norm.default,
    softmax: aten.softmax.int,
    unshifted_softmax: aten.softmax.int,
    softmax_by_logarithm: aten.softmax.int,
    log_softmax: aten.log_softmax.int,
    logarithm: aten.logsumexp.default,
    variance: aten.var.correction,
    attention: aten.scaled_dot_product_attention.default,
}
