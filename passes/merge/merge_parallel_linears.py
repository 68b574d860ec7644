"""Merge linear layers that read one value into one.

    linear(x, W1, b1), ..., linear(x, Wn, bn)  =  split(linear(x, [W1; ...; Wn], [b1; ...; bn]))

W1; ...; Wn stand one below the other: the merged layer gives all outputs side by side, and the split takes them apart.
A missing bias is zero where another layer has one. Queries, keys and values are such layers, the two halves of a gated
feed-forward network, and the modulations of all blocks by one embedding.

Numerical effect: EXACT. Every weight keeps its bits; a product of other sizes may add in another order.

A group is all layers that read the same node: where equal values are computed twice, as decomposed programs do, it is
for eliminate-common-subexpressions to run first. It is merged whole or not at all, at its first layer. ``measured``
decides where it names the group, else a cost model (``flowopt.analysis.linear_cost``): the predicted gain must reach
``min_gain`` at the captured sizes, and no time may be lost with every free dimension at its smallest. So what merges
follows the sizes that the model was captured with, as measured choices do.

Refuses when:
    no-partner              no other layer with stored weights reads the value
    no-gain                 the merged layer is not faster, as predicted or as measured
    grows-too-much          the merged weights take more bytes than ``max_growth`` and the tensors that nobody else
                            reads: weights that are tied to others are copied
    stale-choice            ``measured`` names the site, but for layers of other sizes
    not-constant            the weight or the bias is computed at run time, or state
    quantized-weight        the weight is computed from integers or 8-bit floats, and would be stored as it is computed
    dynamic-shape           the number of rows depends on data
    unsupported-spelling    the weight is a vector, empty, complex or of integers; or the bias is broadcast
    missing-metadata        a node without recorded shape

The other layers of a merged group are reported as already rewritten. A layer that is called on two values belongs to
two groups, and each gets a merged weight of its own.

Attributes of the matched operators:
    linear: input compared, weight and bias used.

Source: Shoeybi et al., "Megatron-LM", section 3, stores queries, keys and values as one matrix; TASO (Jia et al., SOSP
2019), section 2, has the rule and its cost.
"""

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from flowopt.analysis.concrete_shapes import ConcreteShapes
from flowopt.analysis.freed_bytes import freed_bytes
from flowopt.analysis.linear_cost import merge_cost
from flowopt.analysis.linear_group import LinearGroup
from flowopt.analysis.measured_merge import MeasuredMerge
from flowopt.analysis.quantized import quantized_source
from flowopt.ir.constants import is_parameter_only, needed_nodes
from flowopt.ir.metadata import recorded_tensor, sizes_as_text
from flowopt.rewrite import Edit, Exactness, RewritePass, Site

_aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Plan:
    """Merge ``layers``, in the order of the graph; ``group`` has their sizes as captured, ``reason`` the decision's."""

    layers: tuple[fx.Node, ...]
    group: LinearGroup
    reason: str


class MergeParallelLinears(RewritePass[Plan]):
    """Merge linear layers that read one value into one, where that is faster."""

    exactness: ClassVar[Exactness] = Exactness.EXACT
    anchors: ClassVar[tuple[Any, ...]] = (_aten.linear.default,)

    min_gain: float = 1.02
    "Smallest predicted time of the separate layers divided by that of the merged one."
    max_growth: int = 1048576
    "Bytes by which merged weights may be larger than what they replace."
    copies: bool = True
    "Whether the runtime copies when it takes a value apart: ONNX Runtime does, torch does not."
    # Filled from a file of measured choices: dozens of sites have no place in a text form.
    measured: tuple[MeasuredMerge, ...] = field(default=(), repr=False)

    def check(self, site: Site) -> Plan:
        obstacle = _obstacle(site.node)
        if obstacle is not None:
            site.refuse(*obstacle)
        source = _node(site.node.args[0])
        layers = tuple(n for n in sorted(source.users) if n.target in self.anchors and _obstacle(n) is None)
        site.require(len(layers) > 1, "no-partner", f"no other linear layer with stored weights reads {source.name}")
        self._require_small(site, layers)
        group = _sized(site, layers, {dim.name: dim.traced for dim in site.program.dims})
        names = {layer.name for layer in layers}
        choice = next((m for m in self.measured if m.site in names), None)
        reason = self._predicted(site, layers, group) if choice is None else _followed(site, choice, layers, group)
        return Plan(layers, group, reason)

    def rewrite(self, edit: Edit, plan: Plan) -> str:
        first, outputs = plan.layers[0], plan.group.outputs
        with edit.before(first):
            weights = [edit.constant(_node(layer.args[1])) for layer in plan.layers]
            weight = edit.parameter(_name(plan.layers, "weight"), torch.cat(weights), like=_node(first.args[1]))
            bias = None
            if plan.group.has_bias:
                biases = [_bias_value(edit, n, count) for n, count in zip(plan.layers, outputs, strict=True)]
                bias = edit.parameter(_name(plan.layers, "bias"), torch.cat(biases), like=_node(first.args[1]))
            merged = edit.call(_aten.linear.default, first.args[0], weight, bias)
            parts = edit.call(_aten.split_with_sizes.default, merged, list(outputs), -1)
            new = [edit.call(operator.getitem, parts, index) for index in range(len(outputs))]
        for layer, part in zip(plan.layers, new, strict=True):
            edit.replace(layer, part)
        return f"{len(outputs)} linear layers -> one of {sum(outputs)} features: {plan.reason}"

    def _require_small(self, site: Site, layers: tuple[fx.Node, ...]) -> None:
        stored = [n for layer in layers for n in layer.all_input_nodes if n is not layer.args[0]]
        size = sum(_bytes(_node(layer.args[1])) for layer in layers)
        size += sum(_bytes(b) for b in map(_bias, layers) if b is not None)
        freed = freed_bytes(site.program.graph, site.program.tensors, {*needed_nodes(stored, ()), *layers})
        site.require(
            size <= freed + self.max_growth,
            "grows-too-much",
            f"{size:,} bytes of merged weights would take the place of {freed:,}; max_growth is {self.max_growth:,}",
        )

    def _predicted(self, site: Site, layers: tuple[fx.Node, ...], group: LinearGroup) -> str:
        smallest = _sized(site, layers, {dim.name: max(dim.minimum, 1) for dim in site.program.dims})
        for sizes, least in ((group, self.min_gain), (smallest, min(self.min_gain, 1.0))):
            cost = merge_cost(sizes, copies=self.copies)
            site.require(cost.gain >= least, "no-gain", f"{sizes}: predicted {cost}, at least {least} is needed")
        return f"predicted gain {merge_cost(group, copies=self.copies).gain:.2f}"


def _obstacle(layer: fx.Node) -> tuple[str, str, fx.Node] | None:
    """Why a layer cannot be part of any group: code, message and the node that stands in the way."""
    weight, bias = _node(layer.args[1]), _bias(layer)
    value = recorded_tensor(weight)
    if value is None or recorded_tensor(layer.args[0]) is None:
        return "missing-metadata", f"what {layer.name} reads has no recorded shape and dtype", weight
    for node, what in ((weight, "weight"), (bias, "bias")):
        if node is not None and not is_parameter_only(node):
            return "not-constant", f"the {what} of {layer.name} ({node.name}) is not a stored tensor", node
    if value.dim() != 2 or not value.numel() or not value.is_floating_point():
        kind = f"{str(value.dtype).removeprefix('torch.')} of shape {list(value.shape)}"
        return "unsupported-spelling", f"the weight of {layer.name} is {kind}, not a matrix of real numbers", weight
    if bias is not None and sizes_as_text(bias) != sizes_as_text(weight)[:1]:
        shape = ", ".join(sizes_as_text(bias))
        return "unsupported-spelling", f"the bias of {layer.name} is [{shape}], not one number per output", bias
    narrow = quantized_source(weight)
    if narrow is not None:
        stored = recorded_tensor(narrow)
        return "quantized-weight", f"the weight of {layer.name} is computed from {narrow.target} ({stored})", narrow
    return None


def _sized(site: Site, layers: tuple[fx.Node, ...], sizes: Mapping[str, int]) -> LinearGroup:
    source, weights = _node(layers[0].args[0]), [_node(layer.args[1]) for layer in layers]
    shape = ConcreteShapes(site.program, sizes).of(source)
    if shape is None:
        site.refuse("dynamic-shape", f"the number of rows of {source.name} depends on data", source)
    outputs = tuple(int(site.recorded(w).shape[0]) for w in weights)
    has_bias = any(_bias(layer) is not None for layer in layers)
    return LinearGroup(shape, outputs, site.recorded(weights[0]).dtype, has_bias)


def _followed(site: Site, choice: MeasuredMerge, layers: tuple[fx.Node, ...], group: LinearGroup) -> str:
    is_same = choice.site == layers[0].name and choice.group == group
    message = f"measured at {choice.site}: {choice.group}, but at {layers[0].name} are {group}; measure again"
    site.require(is_same, "stale-choice", message)
    site.require(choice.merge, "no-gain", f"{group}: measured gain {choice.gain:.2f}")
    return f"measured gain {choice.gain:.2f}"


def _node(argument: Any) -> fx.Node:
    assert isinstance(argument, fx.Node), "a layer's input and weight are values"
    return argument


def _bias(layer: fx.Node) -> fx.Node | None:
    bias = layer.args[2] if len(layer.args) > 2 else layer.kwargs.get("bias")
    return bias if isinstance(bias, fx.Node) else None


def _bias_value(edit: Edit, layer: fx.Node, outputs: int) -> Tensor:
    bias = _bias(layer)
    return torch.zeros(outputs, dtype=torch.float64) if bias is None else edit.constant(bias)


def _bytes(node: fx.Node) -> int:
    value = recorded_tensor(node)
    return 0 if value is None else value.numel() * value.dtype.itemsize


def _name(layers: tuple[fx.Node, ...], what: str) -> str:
    """``attention.query_key_value.weight`` for layers of one module; of many, the first one's name and their number."""
    names = [str(_node(layer.args[1]).target) for layer in layers if _node(layer.args[1]).op == "get_attr"]
    parts = [name.removesuffix(".weight").rpartition(".") for name in names]
    if len(names) != len(layers) or not _is_short(parts):
        return f"{layers[0].name}_and_{len(layers) - 1}_more.{what}"
    return f"{parts[0][0]}{parts[0][1]}{'_'.join(last for _, _, last in parts)}.{what}"


def _is_short(parts: list[tuple[str, str, str]]) -> bool:
    return len(parts) <= 4 and len({module for module, _, _ in parts}) == 1
