"""The loop written out: a copy of the step's nodes per step, and no control flow at all.

Weights are shared by all copies.
"""

from typing import Any

from flowopt.lowering.onnx.loops.body import Body, rows
from flowopt.lowering.onnx.loops.outer import Outer


def write_copies(outer: Outer, body: Body) -> list[Any]:
    """Add the copies behind what is there.

    Returns:
        The last state.
    """
    outer.take_all(body.graph)
    body.capture_invariants(outer)
    sliced = {name: rows(outer, body, name) for name in body.sliced}
    read = [*body.loop.state, *body.sliced]
    body.take_inputs([body.inputs[name] for name in read])
    values = dict(outer.values)
    for number in range(body.loop.steps):
        values |= {name: of_steps[number] for name, of_steps in sliced.items()}
        copy = body.graph.clone(allow_outer_scope_values=True)
        for given, name in zip(list(copy.inputs), read, strict=True):
            given.replace_all_uses_with(values[name])
        for node in copy.all_nodes():
            node.name = f"step_{number}/{node.name}"
            for value in node.outputs:
                value.name = f"step_{number}/{value.name}"
        returned = list(copy.outputs)
        copy.outputs.clear()
        outer.take_nodes(copy)
        values |= zip(body.loop.state, returned, strict=True)
    return [values[name] for name in body.loop.state]
