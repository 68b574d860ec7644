"""Multiply linear layers that follow each other into one.

    linear(linear(x, W1, b1), W2, b2)  =  linear(x, W2 W1, W2 b1 + b2)

Between them only moves that leave the features whole, which are then applied to x. The same for 1x1 convolutions that
follow each other directly.

A chain is multiplied only where that saves work: with ``in``, ``mid`` and ``out`` features, where in out is less than
in mid + mid out, multiply-adds of a row. A factorised layer (LoRA, ALBERT's embeddings, an inverted bottleneck) stays.
The parameters shrink by the same count, unless a layer's weight is used elsewhere too.

Numerical effect: EXACT. The product is computed in float64 and rounded once. The value between is no longer rounded;
where W2 cancels what W1 gives, the rounding of the product shows, and the verifier judges it.

Refuses when:
    no-gain                 the product would do as many multiply-adds for a row as the layers, or more
    multiple-readers        the value between is read elsewhere too
    axis-mismatch           the features between are cut, regrouped or repeated, or the second layer contracts another
                            axis
    unsupported-spelling    a convolution with a larger kernel, a stride, padding or groups
    grows-too-much          a weight is used elsewhere too, and the product takes more bytes than ``max_growth``
    not-constant            a weight or a bias is computed at run time, or state
    not-finite              the product would overflow its dtype

A site is a layer that reads another one. Longer chains are multiplied from the last layer upwards, as far as it pays.

Attributes of the matched operators:
    linear: input, weight, bias used. conv1d, conv2d, conv3d: weight, bias used; stride, padding, groups checked;
    dilation irrelevant: the kernel has one place.
    Between them: the moves of ``flowopt.analysis.axes`` but splits and expand, each checked to keep the features whole;
    the number of features in a reshape's sizes is changed to that of x.

Source: linear layers compose by the product of their matrices.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from flowopt.analysis.axes import feature_axis, follow
from flowopt.ir.constants import is_parameter_only
from flowopt.ir.metadata import recorded_tensor
from flowopt.passes.fold import _layers as layers
from flowopt.program.program import Program
from flowopt.rewrite import Edit, Exactness, RewritePass, Site

_aten = torch.ops.aten
_RESHAPES = {_aten.view.default, _aten.reshape.default, _aten._unsafe_view.default}
_MOVES = {
    *_RESHAPES,
    _aten.clone.default,
    _aten.contiguous.default,
    _aten.alias.default,
    _aten.detach.default,
    _aten._to_copy.default,
    _aten.permute.default,
    _aten.transpose.int,
    _aten.t.default,
    _aten.unsqueeze.default,
    _aten.squeeze.default,
    _aten.squeeze.dim,
    _aten.squeeze.dims,
    _aten.select.int,
    _aten.slice.Tensor,
    _aten.expand.default,
}
_CONVOLUTIONS = {_aten.conv1d.default, _aten.conv2d.default, _aten.conv3d.default}


@dataclass(frozen=True, slots=True)
class Move:
    """An operator between two layers; of a reshape, ``axis`` is that of the features."""

    node: fx.Node
    axis: int | None


@dataclass(frozen=True, slots=True)
class Plan:
    """Multiply ``chain``, the first layer first; ``moves`` are what is between, in graph order."""

    chain: tuple[fx.Node, ...]
    moves: tuple[Move, ...]


class FoldLinearChain(RewritePass[Plan]):
    """Multiply linear layers, or 1x1 convolutions, that follow each other into one.

    Attributes:
        max_growth: bytes by which the model may grow where a weight is used elsewhere too.
    """

    exactness: ClassVar[Exactness] = Exactness.EXACT
    anchors: ClassVar[tuple[Any, ...]] = (layers.LINEAR, *_CONVOLUTIONS)
    max_growth: int = 1048576

    def sites(self, program: Program) -> list[fx.Node]:
        """Layers whose input comes from a layer of their kind."""
        return [n for n in super().sites(program) if _layer_before(n) is not None]

    def check(self, site: Site) -> Plan:
        plan = self._longer(site.program, Plan((site.node,), ()))
        if isinstance(plan, _Refused):
            site.refuse(plan.code, plan.message, plan.node)
        while isinstance(longer := self._longer(site.program, plan), Plan):
            plan = longer
        return plan

    def rewrite(self, edit: Edit, plan: Plan) -> str:
        first, last = plan.chain[0], plan.chain[-1]
        weight, bias = _product(plan.chain, edit.constant)
        x = first.args[0]
        assert isinstance(x, fx.Node)
        for move in plan.moves:
            x = _applied(edit, move, x, weight.shape[1])
        old_weight, old_bias = layers.weight_and_bias(last)
        name = layers.parameter_name(old_weight, f"{last.name}.weight")
        new_weight = edit.parameter(name, weight, like=old_weight)
        new_bias = None
        if bias is not None:
            name = layers.parameter_name(old_bias or old_weight, name).removesuffix(".weight")
            name = name if old_bias is not None else f"{name}.bias"
            new_bias = edit.parameter(name, bias, like=old_bias or old_weight)
        args, kwargs = layers.with_parameters(last, new_weight, new_bias)
        edit.replace(last, edit.call(last.target, x, *args[1:], **kwargs))
        return f"{', '.join(layer.name for layer in plan.chain)} -> one layer"

    def _longer(self, program: Program, plan: Plan) -> "Plan | _Refused":
        """The plan with one more layer at its start, or why not."""
        first = plan.chain[0]
        found = _layer_before(first)
        if found is None:
            return _Refused("axis-mismatch", f"no layer is before {first.name}", first)
        layer, path = found
        moves = _moves(layer, path, first)
        if isinstance(moves, _Refused):
            return moves
        longer = Plan((layer, *plan.chain), (*moves, *plan.moves))
        return _refused(program, longer) or self._too_large(program, longer) or longer

    def _too_large(self, program: Program, plan: Plan) -> "_Refused | None":
        weight, bias = _product(plan.chain, program.constant)
        last = plan.chain[-1]
        stored = recorded_tensor(layers.weight_and_bias(last)[0])
        assert stored is not None
        parameters = [n for layer in plan.chain for n in layers.weight_and_bias(layer) if n is not None]
        freed = layers.freed_bytes(parameters, plan.chain)
        growth = (weight.numel() + (0 if bias is None else bias.numel())) * stored.element_size() - freed
        if growth > self.max_growth:
            message = f"the product would take {growth:,} bytes more; max_growth is {self.max_growth:,}"
            return _Refused("grows-too-much", message, last)
        limit = torch.finfo(stored.dtype).max
        if not all(t is None or bool((t.abs() <= limit).all()) for t in (weight, bias)):
            return _Refused("not-finite", f"the product would exceed {limit:.3g}, or is no number", last)
        return None


@dataclass(frozen=True, slots=True)
class _Refused:
    """Why a layer cannot join a chain."""

    code: str
    message: str
    node: fx.Node


def _layer_before(layer: fx.Node) -> tuple[fx.Node, tuple[fx.Node, ...]] | None:
    """The layer of the same kind that a layer reads, and the moves between; convolutions have none between."""
    path: list[fx.Node] = []
    node = layer.args[0]
    while layer.target is layers.LINEAR and isinstance(node, fx.Node) and node.target in _MOVES:
        path.append(node)
        node = node.args[0]
    is_before = isinstance(node, fx.Node) and node.target is layer.target and node not in layer.args[1:]
    return (node, tuple(reversed(path))) if isinstance(node, fx.Node) and is_before else None


def _moves(layer: fx.Node, path: tuple[fx.Node, ...], reader: fx.Node) -> "tuple[Move, ...] | _Refused":
    """The moves that can be applied to what ``layer`` reads; refuses those that do not leave its features whole."""
    for node in (layer, *path):
        if len(node.users) != 1:
            return _Refused("multiple-readers", f"{node.name} is read {len(node.users)} times", node)
    if layer.target is not layers.LINEAR:
        return ()
    whole = at = feature_axis(layer, -1)
    source, moves = layer, list[Move]()
    for node in path:
        at = None if at is None or node.target is _aten.expand.default else follow(node, source, at)
        moves.append(Move(node, at.axis if at is not None and node.target in _RESHAPES else None))
        source = node
    value = recorded_tensor(source)
    assert value is not None and whole is not None  # a weight's shape is known, and so the number of features
    is_whole = at is not None and (at.start, at.stop) == (whole.start, whole.stop) and at.axis == value.dim() - 1
    if not is_whole:
        message = f"{reader.name} does not contract the features of {layer.name} as they are"
        return _Refused("axis-mismatch", message, path[-1] if path else layer)
    return tuple(moves)


def _refused(program: Program, plan: Plan) -> "_Refused | None":
    layer, after, last = plan.chain[0], plan.chain[1], plan.chain[-1]
    for node in (layer, after):
        for parameter in layers.weight_and_bias(node):
            if parameter is not None and not is_parameter_only(parameter):
                message = f"{parameter.name}, of {node.name}, is not a stored tensor"
                return _Refused("not-constant", message, parameter)
        if not _is_pointwise(node):
            return _Refused("unsupported-spelling", f"{node.name} is no 1x1 convolution of stride 1", node)
    sizes = (
        layers.input_features(layer, program.constant(layers.weight_and_bias(layer)[0])),
        layers.input_features(after, program.constant(layers.weight_and_bias(after)[0])),
        layers.output_features(last, program.constant(layers.weight_and_bias(last)[0])),
    )
    first, middle, end = sizes
    if first * end >= first * middle + middle * end:
        work = f"{first} x {end} multiply-adds instead of {first} x {middle} + {middle} x {end}"
        return _Refused("no-gain", f"the product of {layer.name} and {after.name} would do {work}", layer)
    return None


def _is_pointwise(layer: fx.Node) -> bool:
    if layer.target is layers.LINEAR:
        return True
    weight = recorded_tensor(layer.args[1])
    if weight is None or any(size != 1 for size in weight.shape[2:]):
        return False
    stride, padding, _, groups = (*layer.args, *(None, 1, 0, 1, 1)[len(layer.args) - 2 :])[3:]
    return _are(stride, 1) and _are(padding, 0) and _are(groups, 1) and not layer.kwargs


def _are(sizes: Any, wanted: int) -> bool:
    return all(size == wanted for size in (sizes if isinstance(sizes, (list, tuple)) else [sizes]))


def _product(chain: tuple[fx.Node, ...], constant: Callable[[fx.Node], Tensor]) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the one layer, in float64."""
    total, shift = None, None
    for layer in chain:
        weight_node, bias_node = layers.weight_and_bias(layer)
        weight = constant(weight_node)
        matrix = weight.flatten(1)
        total = matrix if total is None else matrix @ total
        shift = None if shift is None else matrix @ shift
        if bias_node is not None:
            bias = constant(bias_node)
            shift = bias if shift is None else shift + bias
    assert total is not None
    return total.reshape(*total.shape, *[1] * (weight.dim() - 2)), shift


def _applied(edit: Edit, move: Move, x: fx.Node, width: int) -> fx.Node:
    """A move applied to a value of ``width`` features."""
    node = move.node
    source, *rest = node.args
    assert isinstance(source, fx.Node)
    with edit.before(node):
        if move.axis is None:
            return edit.repeat(node, {source: x})
        sizes = list(rest[0])  # type: ignore[arg-type]  # a reshape's sizes
        sizes[move.axis] = width
        return edit.call(node.target, x, sizes)
