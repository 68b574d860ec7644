"""Program: one captured model."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from flowopt.errors import UserError
from flowopt.ir.constants import constant_value
from flowopt.ir.copy_graph import copy_graph
from flowopt.ir.evaluate import evaluate
from flowopt.ir.float64 import raised_tensor
from flowopt.ir.metadata import recorded_tensor
from flowopt.ir.substituted import substituted
from flowopt.program.interface import Interface, TensorSpec


@dataclass(frozen=True, slots=True)
class Dim:
    """A dimension that is free at run time.

    ``symbol`` is its name inside the graph's sizes, ``name`` the user's; ``minimum`` and ``maximum`` are
    inclusive (``None``: unbounded); ``traced`` is its size in the example inputs.
    """

    name: str
    symbol: str
    minimum: int
    maximum: int | None
    traced: int


@dataclass(frozen=True, slots=True)
class Input:
    """One input tensor. ``state`` names the stored tensor that supplies it when the caller does not."""

    name: str
    dtype: torch.dtype
    state: str | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """One output tensor. ``state`` names the stored tensor or input whose next value it is."""

    name: str
    dtype: torch.dtype
    state: str | None = None


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a program came from: the class or file, torch's version, and of a file its digest and the trust it got."""

    source: str
    torch_version: str
    sha256: str | None = None
    trust: str | None = None


@dataclass(slots=True)
class Program:
    """One captured model: a functional ATen graph in eval mode and everything it needs to run.

    Attributes:
        graph: ``torch.fx`` graph; ``get_attr`` targets are keys of ``tensors``; placeholders are ``inputs``, in
            order; the output node returns a flat tuple, in the order of ``outputs``.
        tensors: parameters, buffers and constants by name. Immutable by contract: a rewrite stores a new tensor
            under a new name. They are shared with the module that was captured.
        inputs: name and dtype of every input; mutated buffers appear here as state.
        outputs: dotted name and dtype of every output; new values of state come last.
        dims: dimensions that are free at run time.
        example: one input tensor per input (state excluded), as captured.
        single: the model returned one bare tensor rather than a structure.
        raised: every floating dtype counts as float64; tensors are raised when they are read.
    """

    graph: fx.Graph
    tensors: dict[str, Tensor]
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    dims: tuple[Dim, ...]
    example: dict[str, Tensor]
    provenance: Provenance
    single: bool = True
    raised: bool = False

    def copy(self) -> "Program":
        """A snapshot: its own graph and dictionary, the same tensors."""
        return dataclasses.replace(self, graph=copy_graph(self.graph), tensors=dict(self.tensors))

    def raised_copy(self) -> "Program":
        """The float64 twin: a snapshot whose tensors and dtype arguments are raised as it runs."""
        twin = self.copy()
        twin.raised = True
        return twin

    def read(self, name: str) -> Tensor:
        """The stored tensor of a name; in float64 when the program is raised."""
        tensor = self.tensors[name]
        return raised_tensor(tensor) if self.raised else tensor

    def constant(self, node: fx.Node) -> Tensor:
        """Value of a parameter-only node, in float64 whatever the program's precision."""
        return constant_value(node, lambda name: raised_tensor(self.tensors[name]), raised=True)

    def node(self, name: str) -> fx.Node:
        """The node of a name; KeyError when there is none."""
        nodes: dict[str, fx.Node] = {n.name: n for n in self.graph.nodes}
        return nodes[name]

    @property
    def parameter_bytes(self) -> int:
        """Bytes of all stored tensors that the graph reads, shared storage counted once."""
        used = {str(n.target) for n in self.graph.nodes if n.op == "get_attr"}
        storages = {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for n, t in self.tensors.items() if n in used
        }
        return sum(storages.values())

    def drop_unused(self) -> None:
        """Erase nodes that nobody reads and tensors that no node names."""
        self.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
        used = {str(n.target) for n in self.graph.nodes if n.op == "get_attr"}
        kept = used | {i.state for i in self.inputs if i.state}
        for name in [n for n in self.tensors if n not in kept]:
            del self.tensors[name]

    def shape(self, name: str) -> tuple[int | str, ...]:
        """Shape of an input, or else of an output; free dimensions by name, derived ones as an expression of names.

        Raises:
            UserError: no input and no output has that name.
        """
        if name in {i.name for i in self.inputs}:
            return self._shape_of(self.node(name))
        for output, shape in zip(self.outputs, self.output_shapes(), strict=True):
            if output.name == name:
                return shape
        raise UserError(
            f"no input or output {name!r}",
            hint=f"inputs {[i.name for i in self.inputs]}, outputs {[o.name for o in self.outputs]}",
        )

    def output_shapes(self) -> tuple[tuple[int | str, ...], ...]:
        """Shape of every output, by position: an output may have the name of an input."""
        returned: Any = self.graph.output_node().args[0]
        return tuple(self._shape_of(node) for node in returned)

    def concrete_shape(self, value: Tensor, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Sizes of a recorded tensor when the free dimensions take ``sizes`` (dimension name to size)."""
        return tuple(self.concrete_size(s, sizes) for s in value.shape)

    def concrete_size(self, size: int | torch.SymInt, sizes: Mapping[str, int]) -> int:
        """One size when the free dimensions take ``sizes``; TypeError when it depends on data."""
        if isinstance(size, int):
            return size
        return int(substituted(size, {d.symbol: sizes[d.name] for d in self.dims}))

    @property
    def interface(self) -> Interface:
        """Inputs, outputs and ranges of free dimensions, as a call is checked against them."""
        inputs = (TensorSpec(i.name, i.dtype, self.shape(i.name), i.state) for i in self.inputs)
        shaped = zip(self.outputs, self.output_shapes(), strict=True)
        return Interface(
            inputs=tuple(inputs),
            outputs=tuple(TensorSpec(o.name, o.dtype, shape, o.state) for o, shape in shaped),
            dims={d.name: (d.minimum, d.maximum) for d in self.dims},
            single=self.single and len(self.outputs) == 1,
        )

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Inputs by name from a call; state that is not given takes its stored value.

        Raises:
            UserError: too many, missing or unknown inputs, a wrong dtype, rank or size, or one dimension with two
                sizes; it says what the model takes.
        """
        defaults = {i.name: self.tensors[i.state] for i in self.inputs if i.state is not None}
        return defaults | self.interface.bind(args, kwargs)

    def run(self, *args: Any, **kwargs: Any) -> Tensor | dict[str, Tensor]:
        """Run the program eagerly: inputs by position or by name.

        Returns:
            The tensor, when the model returned one bare tensor; else every output by its dotted name.

        Raises:
            UserError: the inputs do not fit.
        """
        return self.interface.result(self.run_named(self.bind(args, kwargs)))

    def run_named(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every output by name, for inputs by placeholder name."""
        values = evaluate(self.graph, self.read, inputs, raised=self.raised)
        return {o.name: v for o, v in zip(self.outputs, values, strict=True)}

    def _shape_of(self, node: fx.Node) -> tuple[int | str, ...]:
        value = recorded_tensor(node)
        if value is None:
            raise UserError(f"{node} has no recorded shape")
        symbols = {d.symbol: d.name for d in self.dims}
        return tuple(s if isinstance(s, int) else str(substituted(s, symbols)) for s in value.shape)
