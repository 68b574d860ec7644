"""The loop as calls of a function that the model defines: a small file, and no control flow once it is loaded.

A function cannot read the graph around it, so its weights and what stays the same are inputs too. ONNX Runtime puts
its nodes in the place of every call when it loads the model.

Source: ONNX, docs/IR.md, model-local functions.
"""

from typing import Any

from flowopt.lowering.onnx.loops.body import Body, described, rows
from flowopt.lowering.onnx.loops.outer import Outer
from flowopt.lowering.onnx.weights import EXTERNAL_BYTES

DOMAIN = "flowopt"
NAME = "Step"


def write_function(outer: Outer, body: Body) -> list[Any]:
    """Add the calls behind what is there.

    Returns:
        The last state.
    """
    import onnx_ir

    graph = body.graph
    _keep_small(graph)
    given, weights = [], []
    for value in list(graph.initializers.values()):
        inner = onnx_ir.Value(name=value.name, shape=value.shape, type=value.type)
        value.replace_all_uses_with(inner)
        given.append(inner)
        weights.append(outer.take(value))
    body.take_inputs([*body.inputs.values(), *given])
    outer.model.functions[(DOMAIN, NAME, "")] = onnx_ir.Function(DOMAIN, NAME, graph=graph, attributes=[])
    outer.import_opsets({DOMAIN: 1})
    sliced = {name: rows(outer, body, name) for name in body.sliced}
    values = dict(outer.values)
    for number in range(body.loop.steps):
        values |= {name: of_steps[number] for name, of_steps in sliced.items()}
        node = onnx_ir.node(
            NAME,
            [*(values[name] for name in body.inputs), *weights],
            domain=DOMAIN,
            num_outputs=len(body.loop.state),
            name=f"step_{number}",
        )
        for output, like, name in zip(node.outputs, body.state, body.loop.state, strict=True):
            described(output, like)
            output.name = f"step_{number}/{name}"
        outer.append(node)
        values |= zip(body.loop.state, node.outputs, strict=True)
    return [values[name] for name in body.loop.state]


def _keep_small(graph: Any) -> None:
    """Make initializers that stay in the model file constants of the function, which has no initializers."""
    import onnx_ir

    nodes = []
    for value in list(graph.initializers.values()):
        if value.const_value.nbytes < EXTERNAL_BYTES:
            value.const_value.name = value.name
            node = onnx_ir.node("Constant", [], {"value": value.const_value}, name=f"step/{value.name}")
            described(node.outputs[0], value)
            value.replace_all_uses_with(node.outputs[0])
            del graph.initializers[value.name]
            node.outputs[0].name = value.name
            nodes.append(node)
    graph.insert_before(graph[0], nodes)
