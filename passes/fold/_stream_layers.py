"""Layers and norms that write into a residual stream or read it, when its values are kept as ``h = p * z + c``."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, final

import torch
from torch import Tensor, fx

from flowopt.analysis.feature_layout import PlacedReader
from flowopt.analysis.norm_affine import CHANNEL_NORMS, LIBRARY_NORMS, affine_arguments
from flowopt.ir.constants import is_parameter_only
from flowopt.ir.metadata import recorded_tensor, sizes_as_text
from flowopt.passes.fold import _layers as layers
from flowopt.rewrite import Edit

_aten = torch.ops.aten
NORMS = (*LIBRARY_NORMS, *CHANNEL_NORMS)
_MAKERS = frozenset({*layers.LAYERS, layers.EMBEDDING})


class Kind(StrEnum):
    """What a writer is, by the tensor that would take an offset.

    Attributes:
        BIASED: a layer with a bias.
        UNBIASED: a layer without.
        TABLE: an embedding.
        NORM: a norm, by its gain and shift.
        SCALED_NORM: a norm that can have a gain alone.
        COMPUTED: nothing can be changed in it.
    """

    BIASED = "biased"
    UNBIASED = "unbiased"
    TABLE = "table"
    NORM = "norm"
    SCALED_NORM = "scaled norm"
    COMPUTED = "computed"


def kind_of(writer: fx.Node, axis: int) -> Kind:
    """What a writer is whose channels are along ``axis``."""
    if writer.op != "call_function":
        return Kind.COMPUTED
    if writer.target in NORMS:
        return _kind_of_norm(writer, axis)
    if writer.target not in _MAKERS:
        return Kind.COMPUTED
    weight, bias = layers.weight_and_bias(writer)
    is_stored = is_parameter_only(weight) and (bias is None or is_parameter_only(bias))
    if not is_stored or layers.feature_axis_of(writer, writer) != axis:
        return Kind.COMPUTED
    if writer.target is layers.EMBEDDING:
        return Kind.TABLE
    if bias is None:
        return Kind.UNBIASED
    return Kind.BIASED if sizes_as_text(bias) == (sizes_as_text(writer)[axis],) else Kind.COMPUTED


def takes_offset(writer: fx.Node, axis: int) -> bool:
    """Whether an offset has a place in a writer; not in a table that others read, which would be copied for it."""
    kind = kind_of(writer, axis)
    is_alone = kind is not Kind.TABLE or len(layers.weight_and_bias(writer)[0].users) == 1
    return is_alone and kind not in (Kind.COMPUTED, Kind.SCALED_NORM)


@final
@dataclass(frozen=True, slots=True)
class Reading:
    """A layer that reads a value of the stream.

    Attributes:
        node: the layer.
        value: of the stream.
        source: what it reads: the value, or the last of ``path``.
        path: moves from the value to the layer.
        features: the channel at each of the layer's inputs.
    """

    node: fx.Node
    value: fx.Node
    source: fx.Node
    path: tuple[fx.Node, ...]
    features: tuple[int, ...]


def reading(value: fx.Node, reader: PlacedReader) -> Reading | None:
    """The reader as a layer whose inputs can be scaled; None where it is none."""
    node, source = reader.node, reader.source
    if node.target is not layers.LINEAR and node.target not in layers.CONVOLUTIONS:
        return None
    if node.args[0] is not source or node.all_input_nodes.count(source) != 1 or source in node.args[1:]:
        return None
    weight, bias = layers.weight_and_bias(node)
    axis = layers.feature_axis_of(node, source)
    if axis is None or not is_parameter_only(weight) or (bias is not None and not is_parameter_only(bias)):
        return None
    if reader.layout.featured_axes() not in ((axis,), ()):
        return None
    return Reading(node, value, source, reader.path, reader.layout.features(axis))


@final
@dataclass(frozen=True, slots=True)
class Change:
    """What a layer or norm needs: the scale and offset of what it reads, and those of what it gives; None: 1 and 0."""

    node: fx.Node
    features: tuple[int, ...] = ()
    scale_in: Tensor | None = None
    offset_in: Tensor | None = None
    scale_out: Tensor | None = None
    offset_out: Tensor | None = None

    @property
    def parameters(self) -> tuple[fx.Node | None, fx.Node | None]:
        """The stored weight and bias, or gain and shift."""
        if self.node.target not in NORMS:
            return layers.weight_and_bias(self.node)
        at, _ = affine_arguments(self.node)
        given = (*self.node.args, None, None, None)[at : at + 2]
        gain, shift = (a if isinstance(a, fx.Node) else None for a in given)
        return gain, None if self.node.target is _aten.rms_norm.default else shift


def changed_parameters(change: Change, constant: Callable[[fx.Node], Tensor]) -> tuple[Tensor | None, Tensor | None]:
    """The new weight and the new bias in float64; None where one stays."""
    node, scale, offset = change.node, change.scale_out, change.offset_out
    weight_node, bias_node = change.parameters
    if node.target in NORMS:
        return _changed_norm(change, constant)
    assert weight_node is not None
    old = constant(weight_node)
    if node.target is layers.EMBEDDING:
        new = old if offset is None else old - offset
        return (new if scale is None else new / scale), None
    bias = None if bias_node is None else constant(bias_node)
    new, at = old, list(change.features)
    if change.scale_in is not None:
        new = layers.scaled_inputs(node, new, change.scale_in[at])
    if change.offset_in is not None:
        # What every output gets of an input that is the offset everywhere.
        added = layers.scaled_inputs(node, old, change.offset_in[at]).flatten(1).sum(1)
        bias = added if bias is None else bias + added
    if offset is not None:
        bias = -offset if bias is None else bias - offset
    if scale is not None:
        new = layers.scaled_outputs(node, new, scale.reciprocal())
        bias = None if bias is None else bias / scale
    keeps_bias = change.offset_in is None and offset is None and scale is None
    return (None if new is old else new), (None if keeps_bias else bias)


def changed(edit: Edit, change: Change, source: Any) -> fx.Node:
    """The call of a layer or norm with new parameters; made before the edit's point.

    Args:
        edit: the rewrite.
        change: what becomes of it.
        source: what it reads; of an embedding, its indices.
    """
    node = change.node
    weight_node, bias_node = change.parameters
    weight, bias = changed_parameters(change, edit.constant)
    like = weight_node or node
    name = f"{node.name}.weight" if weight_node is None else layers.parameter_name(weight_node, f"{node.name}.weight")
    bias_name = f"{name.removesuffix('.weight')}.bias"
    bias_name = bias_name if bias_node is None else layers.parameter_name(bias_node, bias_name)
    new_weight = weight_node if weight is None else edit.parameter(name, weight, like=like)
    new_bias = bias_node if bias is None else edit.parameter(bias_name, bias, like=bias_node or like)
    if node.target in NORMS:
        at, _ = affine_arguments(node)
        given: list[Any] = [source, *node.args[1:]]
        given += [None] * (at + 1 - len(given))
        given[at] = new_weight
        if node.target is not _aten.rms_norm.default:
            given[at + 1 : at + 2] = [new_bias]
        return edit.call(node.target, *given, **node.kwargs)
    if node.target is layers.EMBEDDING:
        return edit.call(node.target, new_weight, source, *node.args[2:], **node.kwargs)
    assert new_weight is not None
    args, kwargs = layers.with_parameters(node, new_weight, new_bias)
    return edit.call(node.target, source, *args[1:], **kwargs)


def _kind_of_norm(norm: fx.Node, axis: int) -> Kind:
    at, axes = affine_arguments(norm)
    rank = len(sizes_as_text(norm))
    given = [a for a in norm.args[at : at + 2] if isinstance(a, fx.Node)]
    is_written_out = {"weight", "bias"}.isdisjoint(norm.kwargs)
    if [a % rank for a in axes] != [axis] or not is_written_out or not all(map(is_parameter_only, given)):
        return Kind.COMPUTED
    return Kind.SCALED_NORM if norm.target is _aten.rms_norm.default else Kind.NORM


def _changed_norm(change: Change, constant: Callable[[fx.Node], Tensor]) -> tuple[Tensor | None, Tensor | None]:
    gain_node, shift_node = change.parameters
    scale, offset = change.scale_out, change.offset_out
    gain = None if gain_node is None else constant(gain_node)
    shift = None if shift_node is None else constant(shift_node)
    if offset is not None:
        shift = -offset if shift is None else shift - offset
    if scale is None:
        return None, None if offset is None else shift
    new_gain = scale.reciprocal() if gain is None else gain / scale
    return new_gain, None if shift is None else shift / scale


def channels_along(vector: Tensor, node: fx.Node, axis: int) -> Tensor:
    """A vector as it broadcasts along one axis of a node's value."""
    recorded = recorded_tensor(node)
    assert recorded is not None  # the node is a value
    return vector.reshape([-1 if at == axis else 1 for at in range(recorded.dim())])
