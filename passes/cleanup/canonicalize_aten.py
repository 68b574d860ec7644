"""Give linear layers, layer norms and batch norms one spelling each.

    addmm(b, x, V), mm(x, V), matmul(x, V)            ->  linear(x, V^T, b)        V a stored (in, out) matrix
    native_layer_norm(x, ...)[0]                      ->  layer_norm(x, ...)
    native_batch_norm, _native_batch_norm_legit,
    cudnn_batch_norm, batch_norm (eval)               ->  _native_batch_norm_legit_no_training(x, ...)[0]

Numerical effect: EXACT. The same products and sums; a matrix product over a transposed copy may add in another
order. The norms are bitwise the same kernels.

Refuses when:
    not-constant            the matrix, or the addend of addmm, is computed at run time (attention products)
    unsupported-spelling    addmm with beta or alpha other than 1, or an addend that is no bias vector
    multiple-readers        the saved statistics of a norm are read
    train-mode              a batch norm that normalises by the batch

Attributes of the matched operators:
    addmm: self used (bias); mat1, mat2 used; beta, alpha checked to be 1.
    mm, matmul: both operands used; matmul is checked to have a stored 2-D right operand.
    native_layer_norm: input, normalized_shape, weight, bias, eps used.
    batch norms: input, weight, bias, running_mean, running_var, eps used; training checked to be False; momentum
    used (it has no effect in eval mode); cudnn_enabled irrelevant: it picks a kernel.
"""

import operator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from flowopt.rewrite import Edit, Exactness, RewritePass, Site

_aten = torch.ops.aten
_PRODUCTS = (_aten.addmm.default, _aten.mm.default, _aten.matmul.default)
_TRANSPOSES = (_aten.t.default, _aten.permute.default, _aten.transpose.int)
_NORM_TUPLES = (
    _aten.native_batch_norm.default,
    _aten._native_batch_norm_legit.default,
    _aten.cudnn_batch_norm.default,
)


@dataclass(frozen=True, slots=True)
class Product:
    """A product with a stored matrix. ``weight`` is read as it is, or transposed into a new tensor."""

    x: fx.Node
    weight: fx.Node
    needs_transpose: bool
    bias: fx.Node | None


@dataclass(frozen=True, slots=True)
class Norm:
    """A norm under another name; ``value`` is the node that carries its result."""

    target: Any
    args: tuple[Any, ...]
    is_tuple: bool
    value: fx.Node


class CanonicalizeAten(RewritePass[Product | Norm]):
    """Give linear layers, layer norms and batch norms the one spelling that other passes expect."""

    exactness: ClassVar[Exactness] = Exactness.EXACT
    anchors: ClassVar[tuple[Any, ...]] = (
        *_PRODUCTS,
        _aten.native_layer_norm.default,
        *_NORM_TUPLES,
        _aten.batch_norm.default,
    )

    def check(self, site: Site) -> Product | Norm:
        if site.node.target in _PRODUCTS:
            return _product(site)
        if site.node.target is _aten.native_layer_norm.default:
            x, shape, weight, bias, eps = site.node.args
            value = _only_result(site)
            return Norm(_aten.layer_norm.default, (x, shape, weight, bias, eps), False, value)
        return _batch_norm(site)

    def rewrite(self, edit: Edit, plan: Product | Norm) -> str:
        if isinstance(plan, Norm):
            new = edit.call(plan.target, *plan.args)
            if plan.is_tuple:
                new = edit.call(operator.getitem, new, 0)
            edit.replace(plan.value, new)
            return f"{edit.anchor.target} -> {plan.target}"
        weight = plan.weight
        if plan.needs_transpose:
            name = f"{weight.target}_t" if weight.op == "get_attr" else f"{edit.anchor.name}_weight"
            weight = edit.parameter(name, edit.constant(plan.weight).t(), like=plan.weight)
        edit.replace(edit.anchor, edit.call(_aten.linear.default, plan.x, weight, plan.bias))
        return f"{edit.anchor.target} -> aten.linear"


def _product(site: Site) -> Product:
    node = site.node
    bias: Any = None
    if node.target is _aten.addmm.default:
        bias, x, matrix = node.args
        scales = (node.kwargs.get("beta", 1), node.kwargs.get("alpha", 1))
        site.require(scales == (1, 1), "unsupported-spelling", f"beta, alpha = {scales}, not 1")
    else:
        x, matrix = node.args
    value = site.recorded(matrix)
    site.constant(matrix, "the right operand")
    site.require(value.dim() == 2, "unsupported-spelling", f"the stored operand has {value.dim()} axes, not 2")
    site.require(site.recorded(x).dim() >= 2, "unsupported-spelling", "the left operand is a vector")
    if bias is not None:
        site.constant(bias, "the addend")
        wanted = (value.shape[1],)
        found = tuple(site.recorded(bias).shape)
        site.require(found == wanted, "unsupported-spelling", f"the addend has shape {found}, not {wanted}")
    original = _transposed_from(matrix)
    return Product(x, original or matrix, original is None, bias)


def _transposed_from(matrix: fx.Node) -> fx.Node | None:
    """The stored (out, in) weight, when the operand is its transpose anyway."""
    source = matrix.args[0] if matrix.target in _TRANSPOSES else None
    return source if isinstance(source, fx.Node) and source.op == "get_attr" else None


def _batch_norm(site: Site) -> Norm:
    node = site.node
    x, weight, bias, mean, variance, training, momentum, eps = node.args[:8]
    site.require(training is False, "train-mode", "training is True: the batch itself is normalised")
    is_tuple = node.target in _NORM_TUPLES
    value = _only_result(site) if is_tuple else node
    site.require(mean is not None and variance is not None, "batch-statistics", "there are no running statistics")
    target = _aten._native_batch_norm_legit_no_training.default
    return Norm(target, (x, weight, bias, mean, variance, momentum, eps), True, value)


def _only_result(site: Site) -> fx.Node:
    """The getitem of element 0; refuses when saved statistics are read."""
    extra = [u for u in site.node.users if u.args[1] != 0]
    site.require(not extra, "multiple-readers", "the saved statistics are read", *extra[:1])
    return next(iter(site.node.users))
