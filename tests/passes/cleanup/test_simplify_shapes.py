import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from flowopt.ir.text import operator_census
from flowopt.passes.cleanup.simplify_shapes import SimplifyShapes
from flowopt.pipeline.runner import run_passes
from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.verification.verify_passes import VerifyPasses
from tests.passes.programs import Written, normal
from tests.zoo.models import ZOO

_sym_size = torch.ops.aten.sym_size.int


Build = Callable[["Sizes"], Sequence[object]]


class Sizes:
    """Adds to a program of x -> sin -> reshape to two axes what export leaves of a model's sizes."""

    def __init__(self, program: Program) -> None:
        self.program = program
        (self.reshape,) = program.graph.find_nodes(op="call_function", target=torch.ops.aten.reshape.default)

    def ask(self, name: str, axis: int) -> fx.Node:
        source = self.program.node(name)
        return self._added(_sym_size, (source, axis), source.meta["val"].shape[axis])

    def compute(self, function: Callable[..., Any], left: fx.Node, right: fx.Node | int) -> fx.Node:
        value = right.meta["val"] if isinstance(right, fx.Node) else right
        return self._added(function, (left, right), function(left.meta["val"], value))

    def _added(self, target: Any, args: tuple[Any, ...], value: Any) -> fx.Node:
        with self.program.graph.inserting_before(self.reshape):
            node = self.program.graph.call_function(target, args)
        node.meta["val"] = value
        return node


def program_of(build: Build) -> Program:
    """The reshape takes the sizes that ``build`` adds."""
    dynamic, dims = {"x": {0: "batch", 1: "sequence"}}, {"batch": (1, 8), "sequence": (1, 16)}
    module = Written(lambda m, x: torch.ops.aten.reshape.default(x.sin(), [x.shape[0] * x.shape[1], 6]))
    program = capture(module.eval(), (normal(2, 5, 6),), dynamic=dynamic, dims=dims).copy()
    sizes = Sizes(program)
    sizes.reshape.update_arg(1, list(build(sizes)))
    return program


def simplified(build: Build) -> Program:
    """After the pass, which is kept and finds nothing more."""
    run = run_passes(program_of(build), [SimplifyShapes()] * 2, [VerifyPasses()])
    assert run.records[0].outcome == "kept", run.records[0].reason
    assert not run.records[1].anchors
    return run.program


def asked(program: Program) -> list[tuple[str, object]]:
    nodes = program.graph.find_nodes(op="call_function", target=_sym_size)
    return sorted((str(node.args[0]), node.args[1]) for node in nodes)


def test_an_input_is_asked_rather_than_a_value() -> None:
    def build(sizes: Sizes) -> list[object]:
        return [sizes.compute(operator.mul, sizes.ask("sin", 0), sizes.ask("sin", 1)), 6]

    assert asked(simplified(build)) == [("x", 0), ("x", 1)]


def test_each_size_is_asked_once() -> None:
    def build(sizes: Sizes) -> list[object]:
        both = sizes.compute(operator.mul, sizes.ask("x", 0), sizes.ask("x", 1))
        more = sizes.compute(operator.mul, sizes.ask("x", 0), 6)
        return [sizes.compute(operator.floordiv, sizes.compute(operator.mul, both, more), more), 6]

    assert asked(simplified(build)) == [("x", 0), ("x", 1)]


def test_a_value_that_is_asked_before_the_input_is() -> None:
    def build(sizes: Sizes) -> list[object]:
        early = sizes.compute(operator.mul, sizes.ask("sin", 0), 7)
        late = sizes.compute(operator.mul, sizes.ask("x", 0), sizes.ask("x", 1))
        return [sizes.compute(operator.floordiv, sizes.compute(operator.mul, late, early), early), 6]

    assert set(asked(simplified(build))) == {("x", 0), ("x", 1)}


def test_arithmetic_that_ends_where_it_began() -> None:
    def build(sizes: Sizes) -> list[object]:
        eightfold = sizes.compute(operator.mul, sizes.ask("x", 1), 8)
        return [sizes.compute(operator.floordiv, eightfold, 8), -1]

    program = simplified(build)
    assert asked(program) == [("x", 1)]
    assert not operator_census(program.graph).keys() & {"mul", "floordiv"}


def test_arithmetic_is_done_once() -> None:
    def build(sizes: Sizes) -> list[object]:
        rows, columns = sizes.ask("x", 0), sizes.ask("x", 1)
        product = sizes.compute(operator.mul, columns, rows)
        return [sizes.compute(operator.floordiv, sizes.compute(operator.mul, product, 2), 2), 6]

    assert operator_census(simplified(build).graph)["mul"] == 1


def test_sizes_that_differ_stay_apart() -> None:
    def build(sizes: Sizes) -> list[object]:
        return [sizes.compute(operator.mul, sizes.ask("x", 0), sizes.ask("x", 1)), 6]

    assert run_passes(program_of(build), [SimplifyShapes()]).records[0].anchors == 0


def test_models_ask_what_they_hold() -> None:
    """A real one: transformers asks the embeddings, and asks again at every mask."""
    module = ZOO["gpt2"]()
    program = capture(module.module, (), module.kwargs, dynamic=module.dynamic, dims=module.dims)
    run = run_passes(program, [SimplifyShapes()] * 2, [VerifyPasses()])
    assert run.records[0].outcome == "kept", run.records[0].reason
    assert not run.records[1].anchors
