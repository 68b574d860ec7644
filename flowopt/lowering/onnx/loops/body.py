"""The step as the forms of a loop see it: a graph, and the part that each of its inputs plays."""

from dataclasses import dataclass
from typing import Any, final

import torch

from flowopt.ir.loop_spec import LoopSpec
from flowopt.lowering.onnx.loops.outer import Outer


@final
@dataclass(frozen=True, slots=True)
class Body:
    """One step that is not yet connected.

    Attributes:
        graph: its ``onnx_ir.Graph``; outputs are the next state, in the order of ``loop.state``.
        inputs: by name, in the step's order; those that the step reads, and the state.
        loop: what the inputs are.
    """

    graph: Any
    inputs: dict[str, Any]
    loop: LoopSpec

    @property
    def sliced(self) -> tuple[str, ...]:
        """Inputs that get another row in every step, in the step's order."""
        return tuple(name for name in self.inputs if name in self.loop.tables or name in self.loop.sequences)

    @property
    def invariants(self) -> tuple[str, ...]:
        """Inputs that stay the same in all steps, in the step's order."""
        return tuple(name for name in self.inputs if name not in self.loop.state and name not in self.sliced)

    @property
    def state(self) -> list[Any]:
        """The inputs that are carried, in the order of the outputs."""
        return [self.inputs[name] for name in self.loop.state]

    def capture_invariants(self, outer: Outer) -> None:
        """Read what stays the same from the graph around."""
        for name in self.invariants:
            self.inputs[name].replace_all_uses_with(outer.values[name])

    def take_inputs(self, values: list[Any]) -> None:
        """Give the graph other inputs."""
        self.graph.inputs.clear()
        self.graph.inputs.extend(values)


def all_rows(outer: Outer, name: str, loop: LoopSpec) -> Any:
    """A table or a sequence as one value [steps, ...]."""
    return outer.stored(name, loop.tables[name]) if name in loop.tables else outer.values[name]


def rows(outer: Outer, body: Body, name: str) -> list[Any]:
    """A table or a sequence as one value per step."""
    if name in body.loop.tables:
        table = body.loop.tables[name].contiguous()
        return [outer.stored(f"{name}_{number}", table[number]) for number in range(body.loop.steps)]
    picked = []
    for number in range(body.loop.steps):
        index = outer.stored(f"{name}_index_{number}", torch.tensor(number))
        node = row_at(outer.values[name], index, body.inputs[name], f"{name}_{number}")
        outer.append(node)
        picked.append(node.outputs[0])
    return picked


def row_at(values: Any, index: Any, like: Any, name: str) -> Any:
    """A node of a name that reads one row, of the shape and dtype of an input of the step."""
    import onnx_ir

    node = onnx_ir.node("Gather", [values, index], {"axis": 0}, name=name)
    node.outputs[0].name = name
    described(node.outputs[0], like)
    return node


def described(value: Any, like: Any) -> None:
    """Give a value the shape and dtype of another."""
    value.shape = like.shape.copy()
    value.type = like.type


def name_last(node: Any, body: Body) -> None:
    """Name and describe the outputs of a loop: the last state."""
    for output, name in zip(node.outputs, body.loop.state, strict=True):
        described(output, body.inputs[name])
        output.name = f"{name}.last"
