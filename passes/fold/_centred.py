"""Writers of a residual stream, centred: their vectors without the mean over features."""

from collections.abc import Callable
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, fx

from flowopt.ir.constants import is_parameter_only
from flowopt.ir.metadata import recorded_tensor, sizes_as_text
from flowopt.passes.fold import _layers as layers
from flowopt.rewrite import Edit

_aten = torch.ops.aten


class Kind(StrEnum):
    """How a writer is centred.

    Attributes:
        LAYER: in its parameters.
        STORED: in the stored tensor that it is.
        CENTRED: it is centred already: a layer norm without gain and shift.
        COMPUTED: only at run time.
    """

    LAYER = "layer"
    STORED = "stored"
    CENTRED = "centred"
    COMPUTED = "computed"


def kind_of(writer: fx.Node, axis: int) -> Kind:
    """How to centre a writer whose features are along ``axis``."""
    value = recorded_tensor(writer)
    assert value is not None  # it is a value of a stream
    if is_parameter_only(writer):
        return Kind.STORED
    if writer.target is _aten.layer_norm.default:
        args = (*writer.args, None, None)
        is_bare = args[2] is None and args[3] is None and len(list(writer.args[1])) == 1  # type: ignore[arg-type]
        return Kind.CENTRED if is_bare and axis == value.dim() - 1 else Kind.COMPUTED
    return Kind.LAYER if _is_layer(writer, axis) else Kind.COMPUTED


def centred(edit: Edit, writer: fx.Node, axis: int, kind: Kind) -> fx.Node:
    """The centred value; made before the edit's point, which must not be before the writer."""
    if kind is Kind.CENTRED:
        return writer
    if kind is Kind.COMPUTED:
        return edit.call(_aten.sub.Tensor, writer, edit.call(_aten.mean.dim, writer, [axis], True))
    if kind is Kind.STORED:
        name = layers.parameter_name(writer, writer.name)
        return edit.parameter(name, without_mean(edit.constant(writer), axis), like=writer)
    weight_node, bias_node = layers.weight_and_bias(writer)
    name = layers.parameter_name(weight_node, f"{writer.name}.weight")
    over = 1 if writer.target is layers.EMBEDDING else 0
    weight = edit.parameter(name, without_mean(edit.constant(weight_node), over), like=weight_node)
    bias = None
    if bias_node is not None:
        name = layers.parameter_name(bias_node, f"{writer.name}.bias")
        bias = edit.parameter(name, without_mean(edit.constant(bias_node), 0), like=bias_node)
    args, kwargs = layers.with_parameters(writer, weight, bias)
    return edit.call(writer.target, *args, **kwargs)


def without_mean(value: Tensor, axis: int) -> Tensor:
    """``value`` minus its mean along an axis."""
    return value - value.mean(dim=axis, keepdim=True)


def _is_layer(writer: fx.Node, axis: int) -> bool:
    """A linear layer, an embedding or a convolution in one group, with stored parameters and features on that axis."""
    is_convolution = writer.target in layers.CONVOLUTIONS
    if not (is_convolution or writer.target in (layers.LINEAR, layers.EMBEDDING)):
        return False
    weight, bias = layers.weight_and_bias(writer)
    is_stored = is_parameter_only(weight) and (bias is None or is_parameter_only(bias))
    if not is_stored or layers.feature_axis_of(writer, writer) != axis:
        return False
    if bias is not None and sizes_as_text(bias) != sizes_as_text(weight)[:1]:
        return False
    # A mean over channels of other groups is no channel of this one.
    return not is_convolution or layers.input_features(writer, _shaped(weight)) == _shaped(weight).shape[1]


def _shaped(weight: fx.Node) -> Tensor:
    value = recorded_tensor(weight)
    assert value is not None  # a graph without recorded values is not legal
    return value


def is_centred(writer: fx.Node, axis: int, constant: Callable[[fx.Node], Tensor]) -> bool:
    """Whether a writer's vectors add up to 0, but for the rounding of stored parameters.

    Args:
        writer: of a stream.
        axis: of its features.
        constant: value of a parameter-only node, in float64.
    """
    kind = kind_of(writer, axis)
    if kind is Kind.CENTRED:
        return True
    if kind is Kind.STORED:
        return _has_no_mean(writer, constant(writer), axis)
    if kind is Kind.LAYER:
        weight, bias = layers.weight_and_bias(writer)
        over = 1 if writer.target is layers.EMBEDDING else 0
        return _has_no_mean(weight, constant(weight), over) and (bias is None or _has_no_mean(bias, constant(bias), 0))
    return _is_difference_from_mean(writer, axis)


def _has_no_mean(stored: fx.Node, value: Tensor, axis: int) -> bool:
    """Means of at most a rounding of the largest of what is averaged."""
    recorded = recorded_tensor(stored)
    assert recorded is not None
    limit = torch.finfo(recorded.dtype).eps * value.abs().amax(dim=axis)
    return bool((value.mean(dim=axis).abs() <= limit).all())


def _is_difference_from_mean(writer: fx.Node, axis: int) -> bool:
    """x - mean(x, axis), as ``centred`` writes it."""
    if writer.target is not _aten.sub.Tensor or writer.kwargs:
        return False
    source, mean = writer.args[:2]
    if not isinstance(mean, fx.Node) or mean.target is not _aten.mean.dim or mean.args[0] is not source:
        return False
    axes: Any = mean.args[1]
    rank = len(sizes_as_text(writer))
    return [a % rank for a in axes] == [axis] and mean.args[2:] == (True,)
