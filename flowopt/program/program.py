"""Program: one captured model."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import Tensor, fx

from flowopt.errors import UserError
from flowopt.ir.constants import constant_value
from flowopt.ir.evaluate import evaluate
from flowopt.ir.float64 import raised_tensor
from flowopt.ir.metadata import recorded_tensor


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
    """Where a program came from: the class or file, its digest where there is a file, and torch's version."""

    source: str
    torch_version: str
    sha256: str | None = None


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
        graph = fx.Graph()
        mapping: dict[fx.Node, fx.Node] = {}
        returned = graph.graph_copy(self.graph, mapping)
        graph.output(returned)
        return dataclasses.replace(self, graph=graph, tensors=dict(self.tensors))

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
        for node in self.graph.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

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
        """Shape of an input or output; free dimensions by name, derived ones as an expression of names."""
        symbols = {d.symbol: d.name for d in self.dims}
        value = self._recorded(name)
        return tuple(s if isinstance(s, int) else str(_substituted(s, symbols)) for s in value.shape)

    def concrete_shape(self, value: Tensor, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Sizes of a recorded tensor when the free dimensions take ``sizes`` (dimension name to size)."""
        return tuple(self.concrete_size(s, sizes) for s in value.shape)

    def concrete_size(self, size: int | torch.SymInt, sizes: Mapping[str, int]) -> int:
        """One size when the free dimensions take ``sizes``; TypeError when it depends on data."""
        if isinstance(size, int):
            return size
        return int(_substituted(size, {d.symbol: sizes[d.name] for d in self.dims}))

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Inputs by name from a call; state that is not given takes its stored value.

        Raises:
            UserError: too many, missing or unknown inputs, a wrong dtype, rank or size.
        """
        free = [i for i in self.inputs if i.state is None]
        if len(args) > len(free):
            raise UserError(f"{len(args)} positional inputs, but the model takes {[i.name for i in free]}")
        given: dict[str, Any] = {i.name: a for i, a in zip(free, args, strict=False)}
        twice = given.keys() & kwargs.keys()
        unknown = kwargs.keys() - {i.name for i in self.inputs}
        if twice or unknown:
            what = "given twice" if twice else "unknown"
            raise UserError(
                f"inputs {what}: {sorted(twice or unknown)}; the model takes {[i.name for i in self.inputs]}"
            )
        given |= kwargs
        for one in self.inputs:
            if one.name not in given and one.state is not None:
                given[one.name] = self.tensors[one.state]
        missing = [i.name for i in self.inputs if i.name not in given]
        if missing:
            raise UserError(f"missing inputs: {missing}")
        return {i.name: self._checked(i, given[i.name]) for i in self.inputs}

    def run(self, *args: Any, **kwargs: Any) -> Tensor | dict[str, Tensor]:
        """Run the program eagerly: inputs by position or by name.

        Returns:
            The tensor, when the model returned one bare tensor; else every output by its dotted name.

        Raises:
            UserError: the inputs do not fit.
        """
        return self.result(self.run_named(self.bind(args, kwargs)))

    def run_named(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every output by name, for inputs by placeholder name."""
        values = evaluate(self.graph, self.read, inputs, raised=self.raised)
        return {o.name: v for o, v in zip(self.outputs, values, strict=True)}

    def result(self, outputs: dict[str, Tensor]) -> Tensor | dict[str, Tensor]:
        """The caller's view of named outputs: the bare tensor where the model returned one."""
        if self.single and len(self.outputs) == 1:
            return outputs[self.outputs[0].name]
        return outputs

    def _recorded(self, name: str) -> Tensor:
        for node in self.graph.nodes:
            if node.op == "placeholder" and node.name == name:
                return _tensor_of(node)
        returned = self.graph.output_node().args[0]
        for output, node in zip(self.outputs, returned, strict=True):  # type: ignore[arg-type]  # a flat tuple
            if output.name == name:
                return _tensor_of(node)
        raise UserError(f"no input or output {name!r}; inputs {[i.name for i in self.inputs]}")

    def _checked(self, one: Input, value: Any) -> Tensor:
        tensor = torch.as_tensor(value)
        wanted = self.shape(one.name)
        fits = tensor.dim() == len(wanted) and all(
            isinstance(w, str) or w == s for w, s in zip(wanted, tensor.shape, strict=True)
        )
        if tensor.dtype != one.dtype or not fits:
            raise UserError(
                f"input {one.name!r} is {tensor.dtype} {list(tensor.shape)}, but the model takes {one.dtype} {list(wanted)}"
            )
        return tensor


def _tensor_of(node: Any) -> Tensor:
    value = recorded_tensor(node)
    if value is None:
        raise UserError(f"{node} has no recorded shape")
    return value


def _substituted(size: torch.SymInt, values: Mapping[str, int] | Mapping[str, str]) -> Any:
    """A symbolic size with symbols replaced by name: the graph's symbols carry assumptions and equal no fresh one."""
    expression = size.node.expr
    return expression.xreplace({s: _sympy_value(values[s.name]) for s in expression.free_symbols if s.name in values})


def _sympy_value(value: int | str) -> Any:
    return sympy.Integer(value) if isinstance(value, int) else sympy.Symbol(value)
