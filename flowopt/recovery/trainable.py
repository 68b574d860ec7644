"""A program as a module that can be trained, with other modules in the place of some of its norms or attention."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, final

import torch
from torch import Tensor, fx, nn

from flowopt.analysis.token_axes import padded_vectors
from flowopt.errors import InternalError, UserError
from flowopt.ir.evaluate import Value, called
from flowopt.program.program import Program
from flowopt.recovery.padding import input_of, real_tokens
from flowopt.recovery.stored_tensors import StoredTensors
from flowopt.recovery.trained_tensors import trained_tensors
from flowopt.recovery.walk import Step, walk_of

# What a leaf reads: a norm's leaf one value, one in the place of attention the query, the key, the value, and a mask.
Source = str | tuple[str, ...]


@final
class Trainable(nn.Module):
    """A program's graph with autograd, its weights as parameters of its own.

    What a leaf takes the place of is computed no more, unless something else reads what is inside it. Each value goes
    after its last reader, but for what the backward pass keeps.

    Args:
        program: is left as it is; so are its tensors, which are copied where they are trained.
        leaves: name of a norm's value to (name of the value that is normalised, module). The module is called with
            that value and with ``pad_mask``, which is True where a token is padding and has the value's shape without
            its channels; None where no such mask is known. Or name of attention's value to (names of what it reads,
            module), which is called with these values alone, in that order.
        padding: name of an input [batch, tokens] that is 1 (or True) where a token is real; with ``not:`` before it,
            where a token is padding.
        frozen: names of stored tensors that are not trained.

    Attributes:
        leaves: the modules by the name of the value that they give.
        active: names of the leaves that are in place; for the others the program's own operators are. All at first.
        tensors: the stored tensors.

    Raises:
        UserError: a leaf, the padding input or a frozen tensor that the program does not have.
    """

    def __init__(
        self,
        program: Program,
        leaves: Mapping[str, tuple[Source, nn.Module]] | None = None,
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
        self._sources: dict[str, Source] = {name: source for name, (source, _) in leaves.items()}
        self._require_names(frozenset(frozen))
        self.active: frozenset[str] = frozenset(leaves)
        # The gain of a norm that goes is not trained in the meantime: its leaf was made for the one it has now.
        read = {str(step.node.target) for step in self._walk(frozenset()) if step.node.op == "get_attr"}
        trained = (trained_tensors(self.program) & read) - frozenset(frozen)
        self.tensors = StoredTensors(self.program.tensors, trained)
        self.leaves = nn.ModuleDict({name: module for name, (_, module) in leaves.items()})
        self._walks: dict[tuple[frozenset[str], frozenset[str]], tuple[Step, ...]] = {}

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
            self._walks[key] = self._walk(key[1])
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

    @property
    def norms(self) -> frozenset[str]:
        """Names of the leaves in place that stand for norms: those that read one value."""
        return frozenset(name for name in self.active if isinstance(self._sources[name], str))

    @property
    def attentions(self) -> frozenset[str]:
        """Names of the leaves in place that stand for attention: those that read several."""
        return self.active - self.norms

    def sources(self, name: str) -> tuple[str, ...]:
        """Names of the values that a leaf reads."""
        return sources_of(self._sources[name])

    def trained_program(self) -> Program:
        """A copy of the program with the trained tensors, in the dtypes that are stored. The leaves are not in it."""
        program = self.program.copy()
        program.tensors |= self.tensors.trained()
        return program

    def _value(
        self, node: fx.Node, values: Mapping[fx.Node, Value], inputs: Mapping[str, Tensor], masked: Tensor | None
    ) -> Value:
        if node.name in self.active:
            leaf, source = self.leaves[node.name], self._sources[node.name]
            if not isinstance(source, str):
                return leaf(*(values[self._nodes[one]] for one in source))
            read = self._nodes[source]
            return leaf(values[read], pad_mask=self._padding_at(read, values[read], masked, leaf))
        if node.op == "placeholder":
            return inputs[node.name]
        if node.op == "get_attr":
            return self.tensors.read(str(node.target))
        return called(node, values.__getitem__, raised=False)

    def _padding_at(self, read: fx.Node, value: Tensor, masked: Tensor | None, leaf: nn.Module) -> Tensor | None:
        """Which vectors of what a norm's leaf reads are padding."""
        axis = getattr(leaf, "channel_axis", -1)
        if masked is None or self.padding is None:
            return None
        return padded_vectors(read, value, masked, self._nodes[input_of(self.padding)], axis)

    def _with_state(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        stored = {i.name: self.tensors.read(i.state) for i in self.program.inputs if i.state is not None}
        given = stored | dict(inputs)
        missing = [i.name for i in self.program.inputs if i.name not in given]
        if missing:
            raise UserError(f"no value for the input {missing[0]!r}", hint=f"the inputs given are {sorted(inputs)}")
        return given

    def _walk(self, observe: frozenset[str]) -> tuple[Step, ...]:
        """What is computed, in order: all that the outputs and the observed nodes need with the leaves in place."""
        unknown = observe - self._nodes.keys()
        if unknown:
            raise UserError(f"the program has no node {sorted(unknown)[0]!r} to observe")
        return walk_of(self.program.graph, [self._nodes[name] for name in sorted(observe)], self._inputs_of)

    def _inputs_of(self, node: fx.Node) -> list[fx.Node]:
        if node.name not in self.active:
            return node.all_input_nodes
        return [self._nodes[name] for name in sources_of(self._sources[node.name])]

    def _require_names(self, frozen: frozenset[str]) -> None:
        for name, source in self._sources.items():
            absent = [one for one in (name, *sources_of(source)) if one not in self._nodes]
            if absent:
                raise UserError(f"the program has no node {absent[0]!r}, which a leaf is to be put at")
            late = [one for one in sources_of(source) if not self._nodes[one] < self._nodes[name]]
            if late:
                raise UserError(f"{late[0]!r} is computed after {name!r}, and cannot be what its leaf reads")
        if self.padding is not None and input_of(self.padding) not in {i.name for i in self.program.inputs}:
            known = [i.name for i in self.program.inputs]
            raise UserError(f"the model has no input {self.padding!r} that tells padding", hint=f"its inputs: {known}")
        unknown = frozen - self.program.tensors.keys()
        if unknown:
            raise UserError(f"the program has no stored tensor {sorted(unknown)[0]!r} to freeze")


def sources_of(source: Source) -> tuple[str, ...]:
    """The names, one or several."""
    return (source,) if isinstance(source, str) else source


def trained_parameters(student: Trainable) -> list[nn.Parameter]:
    """Parameters that are trained: weights of the program, then those of the leaves, in the order of ``state_dict``."""
    return [parameter for parameter in student.parameters() if parameter.requires_grad]


def device_of(student: Trainable) -> torch.device:
    """Where the student's weights lie."""
    return next((p.device for p in student.parameters()), torch.device("cpu"))
