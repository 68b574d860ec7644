"""Give convolutions, linear layers, layer norms and batch norms one spelling each.

    addmm(b, x, V), mm(x, V), matmul(x, V)            ->  linear(x, V^T, b)        V a stored (in, out) matrix
    bmm(x, V repeated along the batch)                ->  linear(x, V^T)
    convolution(x, W, b, ...)                         ->  conv1d, conv2d, conv3d, conv_transpose1d, ...
    native_layer_norm(x, ...)[0]                      ->  layer_norm(x, ...)
    native_batch_norm, cudnn_batch_norm,
    batch_norm (eval)                                 ->  _native_batch_norm_legit_no_training(x, ...)[0]

Numerical effect: EXACT. The same products and sums; a matrix product over a transposed copy may add in another
order. Convolutions and norms are bitwise the same kernels.

Refuses when:
    not-constant            the matrix, or the addend of addmm, is computed at run time (attention products)
    unsupported-spelling    addmm with beta or alpha other than 1, or an addend that is no bias vector; a product with
                            a vector or a stack of matrices
    multiple-readers        the saved statistics of a norm are read
    train-mode              a batch norm that was captured in train mode
    batch-statistics        a batch norm without running statistics
    missing-metadata        a node without recorded shape

Attributes of the matched operators:
    addmm: self used (bias); mat1, mat2 used; beta, alpha checked to be 1.
    mm, matmul, bmm: both operands used; the right one is checked to be a stored 2-D matrix, for bmm one that
    ``expand`` repeats.
    convolution: input, weight, bias, stride, padding, dilation, groups used; transposed picks the operator;
    output_padding used by transposed convolutions, irrelevant to others: it must be 0 there.
    native_layer_norm: input, normalized_shape, weight, bias, eps used.
    batch norms: input, weight, bias, running_mean, running_var, eps used; training checked to be False; momentum
    used (it has no effect in eval mode); cudnn_enabled irrelevant: it picks a kernel.
"""

import operator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from flowopt.analysis.axes import axis_order
from flowopt.ir.metadata import sizes_as_text
from flowopt.rewrite import Edit, Exactness, RewritePass, Site

_aten = torch.ops.aten
_PRODUCTS = (_aten.addmm.default, _aten.mm.default, _aten.matmul.default, _aten.bmm.default)
_CONVOLUTIONS = {1: _aten.conv1d.default, 2: _aten.conv2d.default, 3: _aten.conv3d.default}
_TRANSPOSED = {1: _aten.conv_transpose1d.default, 2: _aten.conv_transpose2d.input, 3: _aten.conv_transpose3d.input}
_NORM_TUPLES = (_aten.native_batch_norm.default, _aten.cudnn_batch_norm.default)


@dataclass(frozen=True, slots=True)
class Product:
    """A product with a stored matrix. ``weight`` is read as it is, or transposed into a new tensor."""

    x: fx.Node
    weight: fx.Node
    needs_transpose: bool
    bias: fx.Node | None


@dataclass(frozen=True, slots=True)
class Renamed:
    """The same computation by another operator; ``value`` is the node that carries its result."""

    target: Any
    args: tuple[Any, ...]
    is_tuple: bool
    value: fx.Node


class CanonicalizeAten(RewritePass[Product | Renamed]):
    """Give convolutions, linear layers and norms the one spelling that other passes expect."""

    exactness: ClassVar[Exactness] = Exactness.EXACT
    anchors: ClassVar[tuple[Any, ...]] = (
        *_PRODUCTS,
        _aten.convolution.default,
        _aten.native_layer_norm.default,
        *_NORM_TUPLES,
        _aten.batch_norm.default,
    )

    def check(self, site: Site) -> Product | Renamed:
        if site.node.target in _PRODUCTS:
            return _product(site)
        if site.node.target is _aten.convolution.default:
            return _convolution(site)
        if site.node.target is _aten.native_layer_norm.default:
            x, shape, weight, bias, eps = site.node.args
            value = _only_result(site)
            return Renamed(_aten.layer_norm.default, (x, shape, weight, bias, eps), False, value)
        return _batch_norm(site)

    def rewrite(self, edit: Edit, plan: Product | Renamed) -> str:
        if isinstance(plan, Renamed):
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
    x: Any
    matrix: Any
    if node.target is _aten.addmm.default:
        bias, x, matrix = node.args
        scales = (node.kwargs.get("beta", 1), node.kwargs.get("alpha", 1))
        site.require(scales == (1, 1), "unsupported-spelling", f"beta, alpha = {scales}, not 1")
    else:
        x, matrix = node.args
    repeated = _repeated(matrix) if node.target is _aten.bmm.default else None
    matrix = repeated or matrix
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


def _repeated(stack: fx.Node) -> fx.Node | None:
    """The one matrix that a stack of matrices repeats: linear over a non-contiguous input decomposes to that."""
    shape = sizes_as_text(stack)[1:]
    # Whatever the reshapes in between: repetitions of a matrix, cut into pieces of its shape, are that matrix.
    while stack.target is _aten.reshape.default:
        stack = stack.args[0]  # type: ignore[assignment]  # a reshape's input is a node
    matrix = stack.args[0] if stack.target is _aten.expand.default else None
    is_whole = sizes_as_text(matrix) == shape == sizes_as_text(stack)[-2:]
    return matrix if isinstance(matrix, fx.Node) and is_whole else None


def _transposed_from(matrix: fx.Node) -> fx.Node | None:
    """The stored (out, in) weight, when the operand is its transpose anyway."""
    source = matrix.args[0] if axis_order(matrix) == (1, 0) else None
    return source if isinstance(source, fx.Node) and source.op == "get_attr" else None


def _convolution(site: Site) -> Renamed:
    x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = site.node.args
    assert isinstance(weight, fx.Node)
    target = (_TRANSPOSED if transposed else _CONVOLUTIONS)[site.recorded(weight).dim() - 2]
    rest = (output_padding, groups, dilation) if transposed else (dilation, groups)
    return Renamed(target, (x, weight, bias, stride, padding, *rest), False, site.node)


def _batch_norm(site: Site) -> Renamed:
    node = site.node
    x, weight, bias, mean, variance, training, momentum, eps = node.args[:8]
    site.require(mean is not None and variance is not None, "batch-statistics", "there are no running statistics")
    site.require(training is False, "train-mode", "training is True: the batch itself is normalised")
    value = _only_result(site) if node.target in _NORM_TUPLES else node
    target = _aten._native_batch_norm_legit_no_training.default
    return Renamed(target, (x, weight, bias, mean, variance, momentum, eps), True, value)


def _only_result(site: Site) -> fx.Node:
    """The getitem of element 0; refuses when saved statistics are read."""
    extra = [u for u in site.node.users if u.args[1] != 0]
    site.require(not extra, "multiple-readers", "the saved statistics are read", *extra[:1])
    return next(iter(site.node.users))
