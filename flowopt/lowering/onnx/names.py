"""Give inputs, outputs and dimensions of an ONNX model the program's names."""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from flowopt.program.interface import Interface

_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")


def separate_outputs(model: Any) -> None:
    """Give every output a value of its own: an input, a stored tensor or a value returned twice gains an Identity."""
    import onnx_ir

    graph = model.graph
    seen: set[int] = set()
    for index, output in enumerate(list(graph.outputs)):
        if output.is_graph_input() or output.is_initializer() or id(output) in seen:
            identity = onnx_ir.node("Identity", [output])
            identity.outputs[0].shape = output.shape
            identity.outputs[0].type = output.type
            graph.append(identity)
            graph.outputs[index] = identity.outputs[0]
        seen.add(id(graph.outputs[index]))


def name_interface(model: Any, interface: Interface, symbols: Mapping[str, str]) -> tuple[str, ...]:
    """Rename inputs, outputs and free dimensions by position; every other value keeps its name or steps aside.

    Args:
        model: an ``onnx_ir.Model``.
        interface: its inputs and outputs, in the model's order.
        symbols: what the model calls a free dimension, to its name.

    Returns:
        The outputs' names in the file: the interface's, except where an input has the same.
    """
    import onnx_ir

    inputs = [i.name for i in interface.inputs]
    outputs = _output_names(interface)
    graph = model.graph
    assert len(graph.inputs) == len(inputs) and len(graph.outputs) == len(outputs), "the exporter keeps the signature"
    _rename_others(model, {id(value) for value in (*graph.inputs, *graph.outputs)}, {*inputs, *outputs})
    for value in _values(model):
        if value.shape is not None:
            value.shape = onnx_ir.Shape([_renamed(d, symbols) for d in value.shape])
    shapes = [one.shape for one in (*interface.inputs, *interface.outputs)]
    for value, name, shape in zip((*graph.inputs, *graph.outputs), (*inputs, *outputs), shapes, strict=True):
        value.name = name
        value.shape = onnx_ir.Shape(shape)
    return outputs


def _output_names(interface: Interface) -> tuple[str, ...]:
    names: list[str] = []
    taken = {i.name for i in interface.inputs} | {o.name for o in interface.outputs}
    inputs = {i.name for i in interface.inputs}
    for output in interface.outputs:
        name = free_name(f"{output.name}.output", taken) if output.name in inputs else output.name
        taken.add(name)
        names.append(name)
    return tuple(names)


def _rename_others(model: Any, interface: set[int], taken: set[str]) -> None:
    """Unique names for all inner values, in graph order, so that the same program always gets the same ones."""
    used = set(taken)
    others = [value for value in _values(model) if id(value) not in interface]
    # An initializer cannot be given a name that another still has, hence two rounds.
    wanted = [value.name or "value" for value in others]
    for index, value in enumerate(others):
        if value.is_initializer():
            value.name = f"<{index}>"
    for value, name in zip(others, wanted, strict=True):
        value.name = free_name(name, used)
        used.add(value.name)


def free_name(name: str, taken: Collection[str]) -> str:
    """The name, or the name with the smallest number behind it that is not taken."""
    candidate, count = name, 0
    while candidate in taken:
        count += 1
        candidate = f"{name}_{count}"
    return candidate


def _renamed(dim: Any, symbols: Mapping[str, str]) -> int | str | None:
    """A size with the graph's symbols (``2*s77``) replaced by dimension names, all at once."""
    if isinstance(dim, int):
        return dim
    if dim.value is None:
        return None
    return _IDENTIFIER.sub(lambda found: symbols.get(found[0], found[0]), str(dim.value))


def _values(model: Any) -> Iterator[Any]:
    """Every value of the main graph and of graphs inside nodes, once, in a fixed order."""
    for graph in model.graphs():
        yield from graph.inputs
        yield from graph.initializers.values()
    for node in model.graph.all_nodes():
        yield from node.outputs
