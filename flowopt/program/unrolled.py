"""A sampler as one ordinary program: the step's graph copied as often as it runs. Nothing is captured again."""

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

from flowopt.errors import InternalError
from flowopt.ir.copy_graph import keep_name
from flowopt.ir.metadata import recorded_tensor
from flowopt.program.program import Program
from flowopt.program.sampler_program import SamplerProgram


def unrolled(sampler: SamplerProgram) -> Program:
    """The whole sampler as a program that shares its tensors; rows of tables are read from the tables.

    Raises:
        InternalError: the sampler is a float64 twin, or nothing supplies an input of a part.
    """
    prologue, step, epilogue, loop = sampler.prologue, sampler.step, sampler.epilogue, sampler.loop
    if prologue.raised:
        raise InternalError("a raised sampler is evaluated, not unrolled")
    joined = _Joined(_fake_mode(prologue))
    values = joined.placeholders(prologue)
    values |= zip([o.name for o in prologue.outputs], joined.part("prologue", prologue, values), strict=True)
    for name, table in loop.tables.items():
        values[name] = joined.stored(f"table.{name}", table)
    for number in range(loop.steps):
        feed = dict(values)
        for name in (*loop.tables, *loop.sequences):
            feed[name] = joined.row(values[name], number)
        values |= zip(loop.state, joined.part("step", step, feed), strict=True)
    joined.graph.output(tuple(joined.part("epilogue", epilogue, values)))
    program = Program(
        graph=joined.graph,
        tensors=joined.tensors,
        inputs=prologue.inputs,
        outputs=epilogue.outputs,
        dims=prologue.dims,
        example=prologue.example,
        provenance=step.provenance,
        single=epilogue.single,
    )
    program.drop_unused()
    return program


@final
class _Joined:
    """One graph while parts are added; sizes of all parts become those of the first one's free dimensions."""

    def __init__(self, mode: FakeTensorMode) -> None:
        self.graph = fx.Graph()
        self.tensors: dict[str, Tensor] = {}
        self._mode = mode
        self._reads: dict[str, fx.Node] = {}

    def placeholders(self, prologue: Program) -> dict[str, fx.Node]:
        found = {}
        for old in prologue.graph.nodes:
            if old.op == "placeholder":
                new = self.graph.placeholder(old.name)
                keep_name(new, old.name)
                new.meta = dict(old.meta)
                found[old.name] = new
        return found

    def stored(self, name: str, tensor: Tensor) -> fx.Node:
        if name not in self._reads:
            self.tensors[name] = tensor
            self._reads[name] = self.graph.create_node("get_attr", name, name=name.replace(".", "_"))
            self._reads[name].meta["val"] = self._mode.from_tensor(tensor, static_shapes=True)
        return self._reads[name]

    def row(self, rows: fx.Node, number: int) -> fx.Node:
        node = self.graph.call_function(torch.ops.aten.select.int, (rows, 0, number))
        self._record(node)
        return node

    def part(self, name: str, program: Program, feed: dict[str, fx.Node]) -> Sequence[fx.Node]:
        """Copy a part's nodes, its inputs replaced by name; what it returns."""
        mapping: dict[fx.Node, fx.Node] = {}
        for old in program.graph.nodes:
            if old.op == "placeholder":
                if old.name not in feed:
                    raise InternalError(f"nothing supplies the {name}'s input {old.name!r}")
                mapping[old] = feed[old.name]
            elif old.op == "get_attr":
                mapping[old] = self.stored(f"{name}.{old.target}", program.tensors[str(old.target)])
            elif old.op == "call_function":
                mapping[old] = self.graph.node_copy(old, lambda node: mapping[node])
                mapping[old].meta = dict(old.meta)
                self._record(mapping[old])
        returned: Any = program.graph.output_node().args[0]  # a flat tuple of nodes
        return [mapping[node] for node in returned]

    def _record(self, node: fx.Node) -> None:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda one: one.meta["val"])
        target: Any = node.target
        with self._mode, torch.no_grad():
            node.meta["val"] = target(*args, **kwargs)


def _fake_mode(program: Program) -> FakeTensorMode:
    """The mode that knows the free dimensions of the program's inputs."""
    for node in program.graph.nodes:
        value = recorded_tensor(node)
        mode = getattr(value, "fake_mode", None)
        if isinstance(mode, FakeTensorMode):
            return mode
    return FakeTensorMode()
