"""Batch norms, layer norms and RMS norms taken apart, put together and folded.

Left out: a layer norm as a group norm of one group. The kernel of group_norm computes x s + (b - m s) where that of
layer_norm computes (x - m) s in effect: on rows whose mean is 1e6 times their spread it errs 5,000 times more.
"""

import math
import operator
from typing import Any, Final

import torch
from torch import Tensor, fx

from flowopt.ir.metadata import recorded_tensor, static_size
from flowopt.passes.fold.fold_batch_norm import FoldBatchNorm
from flowopt.passes.fold.fold_norm_affine import FoldNormAffine
from flowopt.rewrite import Edit
from tests.goals.planted_right import BatchNormAsMulAdd
from tests.mutation.right.kind import Kind, borrowed, built
from tests.mutation.right.term import Term, arguments, aten, is_call, is_number, is_stored, raw_arguments

_BATCH_NORM = aten._native_batch_norm_legit_no_training.default
_LAYER_NORM, _RMS_NORM, _MUL = aten.layer_norm.default, aten.rms_norm.default, aten.mul.Tensor


def _batch_norm_parts(edit: Edit, node: fx.Node) -> tuple[Term, dict[str, Term], float]:
    """Input, stored vectors as columns over the channels, and epsilon."""
    norm = node.args[0]
    assert isinstance(norm, fx.Node)
    x, *vectors, _, eps = arguments(edit, norm).values()
    names = ("gain", "shift", "mean", "variance")
    shape = [-1] + [1] * (x.rank - 2)
    return x, {n: v.stored(v.value().reshape(shape)) for n, v in zip(names, vectors, strict=True)}, eps


def _batch_norm_by_steps(edit: Edit, node: fx.Node) -> Term:
    """(x - mean) / sqrt(variance + eps) * gain + shift."""
    x, stored, eps = _batch_norm_parts(edit, node)
    return (x - stored["mean"]) / (stored["variance"] + eps).op(aten.sqrt.default) * stored["gain"] + stored["shift"]


def _batch_norm_as_convolution(edit: Edit, node: fx.Node) -> Term:
    """A depthwise 1 x 1 convolution with the scale as its kernel."""
    x, stored, eps = _batch_norm_parts(edit, node)
    values = {name: term.value().flatten() for name, term in stored.items()}
    scale = values["gain"] * torch.rsqrt(values["variance"] + eps)
    shift = values["shift"] - scale * values["mean"]
    kernel = stored["gain"].stored(scale.reshape(-1, 1, 1, 1))
    ones = [1, 1]
    return x.op(aten.conv2d.default, kernel, stored["gain"].stored(shift), ones, [0, 0], ones, scale.numel())


def _is_batch_norm_output(node: fx.Node) -> bool:
    norm = node.args[0]
    return is_call(norm, _BATCH_NORM) and bool(node.args[1] == 0) and is_stored(*norm.args[1:5])


def _is_image_norm(node: fx.Node) -> bool:
    value = recorded_tensor(node)
    return _is_batch_norm_output(node) and value is not None and value.dim() == 4


def _affine(z: Term, a: dict[str, Any]) -> Term:
    z = z * a["weight"] if a["weight"] is not None else z
    bias = a.get("bias")
    return z + bias if bias is not None else z


def _layer_norm_by_steps(edit: Edit, node: fx.Node) -> Term:
    """(x - m) / sqrt(mean (x - m)^2 + eps) * g + b."""
    a = arguments(edit, node)
    centred = a["input"] - a["input"].mean()
    root = ((centred * centred).mean() + a["eps"]).op(aten.sqrt.default)
    return _affine(centred / root, a)


def _layer_norm_by_variance(edit: Edit, node: fx.Node) -> Term:
    """(x - m) * rsqrt(var(x) + eps) * g + b, with both statistics from one operator."""
    a = arguments(edit, node)
    pair = a["input"].op(aten.var_mean.correction, [-1], correction=0, keepdim=True)
    variance, mean = (Term(edit, edit.call(operator.getitem, pair.node, i)) for i in (0, 1))
    return _affine((a["input"] - mean) * (variance + a["eps"]).op(aten.rsqrt.default), a)


def _affine_apart(edit: Edit, node: fx.Node) -> Term:
    """norm(x, g, b) = norm(x) * g + b."""
    a = arguments(edit, node)
    return _affine(_norm(node, a["input"], None, None), a)


def _norm(node: fx.Node, x: Term, gain: Term | None, shift: Term | None) -> Term:
    a = raw_arguments(node)
    extra = (shift, a["eps"]) if node.target is _LAYER_NORM else (a["eps"],)
    return x.op(node.target, a["normalized_shape"], gain, *extra)


def _centred_first(edit: Edit, node: fx.Node) -> Term:
    """A layer norm does not see a shift of all features: norm(x) = norm(x - mean(x))."""
    a = arguments(edit, node)
    return _norm(node, a["input"] - a["input"].mean(), a["weight"], a["bias"])


def _centred_by_matrix(edit: Edit, node: fx.Node) -> Term:
    """norm(x) = norm((I - 1/n) x): the matrix has no zero, so that a NaN still fills its row."""
    a = arguments(edit, node)
    width = static_size(node, -1)
    assert width is not None
    centring = torch.eye(width, dtype=torch.float64) - 1.0 / width
    return _norm(node, a["input"] @ a["weight"].stored(centring), a["weight"], a["bias"])


def _centred_layer(edit: Edit, node: fx.Node) -> Term:
    """The mean over features taken out of the linear layer before a layer norm, in its weight and bias."""
    a = arguments(edit, node)
    layer = arguments(edit, a["input"].node)
    centred = [layer[n].stored(_without_mean(layer[n].value())) for n in ("weight", "bias")]
    return _norm(node, layer["input"].op(aten.linear.default, *centred), a["weight"], a["bias"])


def _without_mean(value: Tensor) -> Tensor:
    return value - value.mean(0, keepdim=True)


def _layer_norm_as_rms_norm(edit: Edit, node: fx.Node) -> Term:
    """An RMS norm of the centred value, and the shift."""
    a = arguments(edit, node)
    centred = a["input"] - a["input"].mean()
    normed = centred.op(_RMS_NORM, a["normalized_shape"], a["weight"], a["eps"])
    return normed + a["bias"] if a["bias"] is not None else normed


def _scaled_norm(edit: Edit, node: fx.Node) -> Term:
    """norm(x, g, b) = norm(x, 3 g, 3 b) / 3."""
    a = arguments(edit, node)
    stored = {n: a[n].stored(3.0 * a[n].value()) for n in ("weight", "bias") if a.get(n) is not None}
    return _norm(node, a["input"], stored.get("weight"), stored.get("bias")) / 3.0


def _rms_norm_by_steps(edit: Edit, node: fx.Node) -> Term:
    """x * rsqrt(mean(x^2) + eps) * g."""
    a = arguments(edit, node)
    root = ((a["input"] * a["input"]).mean() + a["eps"]).op(aten.rsqrt.default)
    return _affine(a["input"] * root, a)


def _rms_norm_by_length(edit: Edit, node: fx.Node) -> Term:
    """x / sqrt(|x|^2 / n + eps) * g, with the Euclidean length of the row."""
    a = arguments(edit, node)
    width = static_size(node, -1)
    length = a["input"].op(aten.linalg_vector_norm.default, 2, [-1], True) * (1.0 / math.sqrt(width or 1))
    return _affine(a["input"] / (length * length + a["eps"]).op(aten.sqrt.default), a)


def _recognised_rms_norm(edit: Edit, node: fx.Node) -> Term:
    """x * rsqrt(mean(x^2) + eps) as one operator."""
    x, root = _written_rms_norm(node)
    mean = raw_arguments(root)["self"]
    eps = raw_arguments(mean)["other"]
    return Term(edit, x).op(_RMS_NORM, [static_size(x, -1)], None, eps)


def _written_rms_norm(node: fx.Node) -> tuple[fx.Node, fx.Node]:
    x, root = node.args[:2] if is_call(node.args[1], aten.rsqrt.default) else reversed(node.args[:2])
    assert isinstance(x, fx.Node) and isinstance(root, fx.Node)
    return x, root


def _is_written_rms_norm(node: fx.Node) -> bool:
    if not any(is_call(a, aten.rsqrt.default) for a in node.args[:2]) or static_size(node, -1) is None:
        return False
    x, root = _written_rms_norm(node)
    total = root.args[0]
    if not is_call(total, aten.add.Tensor) or not is_number(total.args[1]):
        return False
    mean = total.args[0]
    if not is_call(mean, aten.mean.dim) or list(mean.args[1:]) != [[-1], True]:
        return False
    square = mean.args[0]
    return is_call(square, aten.pow.Tensor_Scalar) and tuple(square.args) == (x, 2)


def _covers_one_axis(node: fx.Node) -> bool:
    a = raw_arguments(node)
    known = static_size(node, -1) is not None
    return len(a["normalized_shape"]) == 1 and known and a["eps"] is not None and is_stored(a["weight"])


def _follows_a_layer(node: fx.Node) -> bool:
    layer = node.args[0]
    if not is_call(layer, aten.linear.default) or len(layer.args) != 3 or not is_stored(*layer.args[1:]):
        return False
    return _covers_one_axis(node)


KINDS: Final[tuple[Kind, ...]] = (
    borrowed("batch-norm-as-mul-add", BatchNormAsMulAdd()),
    built("batch-norm-by-steps", (operator.getitem,), _batch_norm_by_steps, _is_batch_norm_output),
    built("batch-norm-as-convolution", (operator.getitem,), _batch_norm_as_convolution, _is_image_norm),
    borrowed("fold-batch-norm", FoldBatchNorm(), keeps_16_bits=True),
    borrowed("fold-norm-affine", FoldNormAffine(), keeps_16_bits=True),
    built("layer-norm-by-steps", (_LAYER_NORM,), _layer_norm_by_steps, _covers_one_axis),
    built("layer-norm-by-variance", (_LAYER_NORM,), _layer_norm_by_variance, _covers_one_axis),
    built("norm-affine-apart", (_LAYER_NORM, _RMS_NORM), _affine_apart, _covers_one_axis),
    built("layer-norm-centred-first", (_LAYER_NORM,), _centred_first, _covers_one_axis),
    built("layer-norm-centred-by-matrix", (_LAYER_NORM,), _centred_by_matrix, _covers_one_axis),
    built("layer-norm-after-centred-layer", (_LAYER_NORM,), _centred_layer, _follows_a_layer, keeps_16_bits=True),
    built("layer-norm-as-rms-norm", (_LAYER_NORM,), _layer_norm_as_rms_norm, _covers_one_axis),
    built("scaled-norm", (_LAYER_NORM, _RMS_NORM), _scaled_norm, _covers_one_axis),
    built("rms-norm-by-steps", (_RMS_NORM,), _rms_norm_by_steps, _covers_one_axis),
    built("rms-norm-by-length", (_RMS_NORM,), _rms_norm_by_length, _covers_one_axis),
    built("recognised-rms-norm", (_MUL,), _recognised_rms_norm, _is_written_rms_norm),
)
