"""A program as a module that can be trained, with other modules in the place of some of its norms."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, fx, nn

from flowopt.analysis.token_axes import kept_rows, token_axes
from flowopt.errors import InternalError, UserError
from flowopt.ir.evaluate import Value, called
from flowopt.program.program import Program
from flowopt.recovery.padding import input_of, real_tokens
from flowopt.recovery.stored_tensors import StoredTensors
from flowopt.recovery.trained_tensors import trained_tensors


@dataclass(frozen=True, slots=True)
class _Step:
    """One node of a walk, and the values that nobody reads after it."""

    node: fx.Node
    dying: tuple[fx.Node, ...]


@final
class Trainable(nn.Module):
    """A program's graph with autograd, its weights as parameters of its own.

    A norm that a leaf takes the place of is computed no more, unless something else reads what is inside it. Each value
    goes after its last reader, but for what the backward pass keeps.

    Args:
        program: is left as it is; so are its tensors, which are copied where they are trained.
        leaves: name of a norm's value to (name of the value that is normalised, module). The module is called with
            that value and with ``pad_mask``, which is True where a token is padding and has the value's shape without
            its channels; None where no such mask is known.
        padding: name of an input [batch, tokens] that is 1 (or True) where a token is real; with ``not:`` before it,
            where a token is padding.
        frozen: names of stored tensors that are not trained.

    Attributes:
        leaves: the modules by the name of the value that they give.
        active: names of the leaves that are in place; for the others the program's own norm is computed. All at first.
        tensors: the stored tensors.

    Raises:
        UserError: a leaf, the padding input or a frozen tensor that the program does not have.
    """

    def __init__(
        self,
        program: Program,
        leaves: Mapping[str, tuple[str, nn.Module]] | None = None,
        *,
        padding: str | None = None,
        frozen: Iterable[str] = (),
    ) -> None:
        super().__init__()
        if program.raised:
            raise InternalError("a raised program exists only while it is evaluated")
        leaves = leaves or {}
        self.program = program.copy()
        self.padding = padding
        self._nodes: dict[str, fx.Node] = {node.name: node for node in self.program.graph.nodes}
        self._sources = {name: source for name, (source, _) in leaves.items()}
        self._require_names(frozenset(frozen))
        self.active: frozenset[str] = frozenset(leaves)
        # The gain of a norm that goes is not trained in the meantime: its leaf was made for the one it has now.
        read = {str(step.node.target) for step in self._steps(frozenset()) if step.node.op == "get_attr"}
        trained = (trained_tensors(self.program) & read) - frozenset(frozen)
        self.tensors = StoredTensors(self.program.tensors, trained)
        self.leaves = nn.ModuleDict({name: module for name, (_, module) in leaves.items()})
        self._walks: dict[tuple[frozenset[str], frozenset[str]], tuple[_Step, ...]] = {}

    def forward(
        self, inputs: Mapping[str, Tensor], *, observe: Collection[str] = ()
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Every output by name, and the values of observed nodes by the node's name.

        Args:
            inputs: by name; state that is not given takes its stored value.
            observe: names of nodes.

        Raises:
            UserError: an input is missing, or no node has an observed name.
        """
        given = self._with_state(inputs)
        masked = None if self.padding is None else ~real_tokens(given, self.padding)
        key = (self.active, frozenset(observe))
        if key not in self._walks:
            self._walks[key] = self._steps(key[1])
        values: dict[fx.Node, Value] = {}
        seen: dict[str, Tensor] = {}
        for step in self._walks[key]:
            values[step.node] = self._value(step.node, values, given, masked)
            if step.node.name in key[1]:
                seen[step.node.name] = values[step.node]
            for node in step.dying:
                del values[node]
        returned: Any = self.program.graph.output_node().args[0]
        outputs = (values[node] for node in returned)
        return {o.name: v for o, v in zip(self.program.outputs, outputs, strict=True)}, seen

    def trained_program(self) -> Program:
        """A copy of the program with the trained tensors, in the dtypes that are stored. The leaves are not in it."""
        program = self.program.copy()
        program.tensors |= self.tensors.trained()
        return program

    def _value(
        self, node: fx.Node, values: Mapping[fx.Node, Value], inputs: Mapping[str, Tensor], masked: Tensor | None
    ) -> Value:
        if node.name in self.active:
            value = values[self._nodes[self._sources[node.name]]]
            return self.leaves[node.name](value, pad_mask=self._padding_at(node.name, value, masked))
        if node.op == "placeholder":
            return inputs[node.name]
        if node.op == "get_attr":
            return self.tensors.read(str(node.target))
        return called(node, values.__getitem__, raised=False)

    def _padding_at(self, name: str, value: Tensor, masked: Tensor | None) -> Tensor | None:
        """Which vectors of what a leaf reads are padding."""
        axis = getattr(self.leaves[name], "channel_axis", -1)
        if masked is None or self.padding is None:
            return None
        axes = token_axes(self._nodes[self._sources[name]], self._nodes[input_of(self.padding)], axis)
        if axes is None:
            return None
        return ~kept_rows(~masked, axes, value, axis).reshape(value.movedim(axis, -1).shape[:-1])

    def _with_state(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        stored = {i.name: self.tensors.read(i.state) for i in self.program.inputs if i.state is not None}
        given = stored | dict(inputs)
        missing = [i.name for i in self.program.inputs if i.name not in given]
        if missing:
            raise UserError(f"no value for the input {missing[0]!r}", hint=f"the inputs given are {sorted(inputs)}")
        return given

    def _steps(self, observe: frozenset[str]) -> tuple[_Step, ...]:
        """What is computed, in order: all that the outputs and the observed nodes need with the leaves in place."""
        unknown = observe - self._nodes.keys()
        if unknown:
            raise UserError(f"the program has no node {sorted(unknown)[0]!r} to observe")
        output = self.program.graph.output_node()
        kept = {*output.all_input_nodes, *(self._nodes[name] for name in observe)}
        needed, pending = set(kept), list(kept)
        while pending:
            for source in self._inputs_of(pending.pop()):
                if source not in needed:
                    needed.add(source)
                    pending.append(source)
        order = [node for node in self.program.graph.nodes if node in needed]
        last: dict[fx.Node, fx.Node] = {}
        for node in order:
            last |= dict.fromkeys(self._inputs_of(node), node)
            last.setdefault(node, node)
        returned = set(output.all_input_nodes)
        dying: dict[fx.Node, list[fx.Node]] = {}
        for node, reader in last.items():
            if node not in returned:
                dying.setdefault(reader, []).append(node)
        return tuple(_Step(node, tuple(dying.get(node, ()))) for node in order)

    def _inputs_of(self, node: fx.Node) -> list[fx.Node]:
        return [self._nodes[self._sources[node.name]]] if node.name in self.active else node.all_input_nodes

    def _require_names(self, frozen: frozenset[str]) -> None:
        for name, source in self._sources.items():
            absent = [one for one in (name, source) if one not in self._nodes]
            if absent:
                raise UserError(f"the program has no node {absent[0]!r}, which a norm is to be swapped at")
            if not self._nodes[source] < self._nodes[name]:
                raise UserError(f"{source!r} is computed after {name!r}, and can not be what it normalises")
        if self.padding is not None and input_of(self.padding) not in {i.name for i in self.program.inputs}:
            known = [i.name for i in self.program.inputs]
            raise UserError(f"the model has no input {self.padding!r} that tells padding", hint=f"its inputs: {known}")
        unknown = frozen - self.program.tensors.keys()
        if unknown:
            raise UserError(f"the program has no stored tensor {sorted(unknown)[0]!r} to freeze")


def trained_parameters(student: Trainable) -> list[nn.Parameter]:
    """Parameters that are trained: weights of the program, then those of the leaves, in the order of ``state_dict``."""
    return [parameter for parameter in student.parameters() if parameter.requires_grad]


def device_of(student: Trainable) -> torch.device:
    """Where the student's weights lie."""
    return next((p.device for p in student.parameters()), torch.device("cpu"))
