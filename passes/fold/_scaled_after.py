"""Find the layers behind a value that can take its scale."""

import operator
from dataclasses import dataclass

from torch import fx

from flowopt.analysis.feature_layout import MOVES, initial_layout, placed_readers
from flowopt.passes.fold._layers import LAYERS, feature_axis_of
from flowopt.passes.fold._scaled_before import SIZE_READERS, Kind, Obstacle, is_floating


@dataclass(frozen=True, slots=True)
class Sink:
    """A layer that reads the scaled value; ``columns`` are the value's features at its inputs, None: of one scale."""

    layer: fx.Node
    columns: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class After:
    """Scaling the inputs of all ``sinks`` scales what is read of the value.

    Attributes:
        sinks: layers.
        between: operators from the value to the layers, in graph order.
        sizes: readers of nothing but sizes.
    """

    sinks: tuple[Sink, ...]
    between: tuple[fx.Node, ...]
    sizes: tuple[fx.Node, ...]


def scaled_after(value: fx.Node) -> After | Obstacle:
    """Layers that can take one scale of all of ``value``.

    It passes through no product: the 0.5 of a written GELU belongs to a pattern that runtimes look for.
    """
    scaled, pending = {value}, [value]
    sinks, sizes = dict[fx.Node, None](), list[fx.Node]()
    while pending:
        node = pending.pop()
        for user in node.users:
            if user.target in SIZE_READERS:
                sizes.append(user)
            elif _is_sink(user, node):
                sinks[user] = None
            elif not _is_move(user, node):
                return _obstacle(node, user)
            elif user not in scaled:
                scaled.add(user)
                pending.append(user)
    return _after([Sink(layer, None) for layer in sorted(sinks)], scaled - {value}, sizes, value)


def scaled_features_after(value: fx.Node, axis: int) -> After | Obstacle:
    """Layers that can take a factor for each feature along ``axis`` of ``value``."""
    layout = initial_layout(value, axis)
    if layout is None:
        return Obstacle(Kind.OTHER_AXIS, f"axis {axis} of {value.name} has a free size", value)
    sinks, between, sizes = list[Sink](), set[fx.Node](), list[fx.Node]()
    for reader in placed_readers(value, layout):
        between.update(reader.path)
        if reader.node.target in SIZE_READERS:
            sizes.append(reader.node)
            continue
        if not _is_sink(reader.node, reader.source):
            return _obstacle(reader.source, reader.node)
        contracted = feature_axis_of(reader.node, reader.source)
        if contracted is None or reader.layout.featured_axes() not in ((contracted,), ()):
            message = f"{reader.node.name} contracts axis {contracted}, the factors belong to another"
            return Obstacle(Kind.OTHER_AXIS, message, reader.node)
        sinks.append(Sink(reader.node, reader.layout.features(contracted)))
    return _after(sinks, between, sizes, value)


def _after(sinks: list[Sink], between: set[fx.Node], sizes: list[fx.Node], value: fx.Node) -> After | Obstacle:
    if not sinks:
        return Obstacle(Kind.NO_LAYER, f"no linear layer reads {value.name}", value)
    return After(tuple(sinks), tuple(sorted(between)), tuple(sizes))


def _is_sink(node: fx.Node, source: fx.Node) -> bool:
    return (
        node.target in LAYERS
        and node.args[0] is source
        and node.all_input_nodes.count(source) == 1
        and (source not in node.args[1:])
    )


def _is_move(node: fx.Node, source: fx.Node) -> bool:
    is_move = node.target in MOVES or node.target is operator.getitem
    return is_move and is_floating(node) and node.args[0] is source


def _obstacle(source: fx.Node, reader: fx.Node) -> Obstacle:
    if reader.op == "output":
        return Obstacle(Kind.OUTPUT, f"{source.name} is an output of the model", reader)
    return Obstacle(
        Kind.NO_LAYER, f"{reader.name} ({reader.target}) reads {source.name} and is no linear layer", reader
    )
