import operator
from typing import Any

import pytest
import torch
from torch import fx

from flowopt.ir.legality import violations
from flowopt.program.program import Program
from tests.rewrite.passes import aten, chain
from tests.zoo.models import ZOO


def broken_rules(program: Program) -> str:
    return "; ".join(violations(program.graph, program.tensors))


def returned(program: Program) -> fx.Node:
    outputs: Any = program.graph.output_node().args[0]
    node: fx.Node = outputs[0]
    return node


def inserted(program: Program, target: object, *args: object, recorded: bool = True) -> fx.Node:
    """A new call before the output, with a value recorded, that the model returns."""
    last = returned(program)
    with program.graph.inserting_before(program.graph.output_node()):
        node = program.graph.call_function(target, args)  # type: ignore[arg-type]  # an operator
    if recorded:
        node.meta["val"] = last.meta["val"]
    program.graph.output_node().args = ((node,),)
    return node


def test_a_captured_program_is_legal() -> None:
    assert broken_rules(chain()) == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_the_zoo_is_legal(name: str) -> None:
    from flowopt.program.capture import capture

    model = ZOO[name]()
    assert broken_rules(capture(model.module, (), model.kwargs, dynamic=model.dynamic, dims=model.dims)) == ""


def test_a_value_is_read_before_it_is_computed() -> None:
    program = chain()
    program.node("relu").args = (program.node("relu_1"),)
    assert "torch.fx lint" in broken_rules(program)


def test_a_node_of_another_graph_is_read() -> None:
    program = chain()
    program.node("relu").args = (chain().node("linear"),)
    assert "torch.fx lint" in broken_rules(program)


def test_an_unknown_tensor_is_read() -> None:
    program = chain()
    del program.tensors["first.bias"]
    assert broken_rules(program) == "first_bias: no tensor is stored under 'first.bias'"


def test_a_stored_tensor_has_another_shape_or_dtype() -> None:
    program = chain()
    program.tensors["first.bias"] = torch.zeros(7)
    assert broken_rules(program) == "first_bias: recorded torch.float32 [4], stored torch.float32 [7]"
    program.tensors["first.bias"] = torch.zeros(4).double()
    assert broken_rules(program) == "first_bias: recorded torch.float32 [4], stored torch.float64 [4]"


@pytest.mark.parametrize("name", ["first_bias", "relu"])
def test_metadata_is_missing(name: str) -> None:
    program = chain()
    del program.node(name).meta["val"]
    assert broken_rules(program) == f"{name}: no recorded metadata"


def test_an_operator_writes_into_its_argument() -> None:
    program = chain()
    node = inserted(program, aten.relu_.default, returned(program))
    assert broken_rules(program) == f"{node.name}: aten.relu_.default writes into its arguments"


def test_something_else_than_an_operator_is_called() -> None:
    program = chain()
    inserted(program, print, returned(program))
    assert "neither an ATen operator nor arithmetic on sizes" in broken_rules(program)


def test_arithmetic_on_sizes_is_allowed() -> None:
    program = chain()
    with program.graph.inserting_before(program.graph.output_node()):
        size = program.graph.call_function(aten.sym_size.int, (program.node("x"), 0))
        size.meta["val"] = program.node("x").meta["val"].shape[0]
        twice = program.graph.call_function(operator.mul, (size, 2))
        twice.meta["val"] = 2 * size.meta["val"]
    inserted(program, aten.mul.Tensor, returned(program), twice)
    assert broken_rules(program) == ""


@pytest.mark.parametrize("kind", ["call_method", "call_module"])
def test_other_kinds_of_nodes(kind: str) -> None:
    program = chain()
    last = returned(program)
    with program.graph.inserting_before(program.graph.output_node()):
        node = program.graph.create_node(kind, "relu", (last,))
    program.graph.output_node().args = ((node,),)
    assert f"{node.name}: node kind {kind} is not functional ATen" in broken_rules(program)


def test_a_value_that_nobody_reads() -> None:
    program = chain()
    last = returned(program)
    inserted(program, aten.neg.default, program.node("relu"))
    assert broken_rules(program) == f"{last.name}: nobody reads it"


def test_outputs_that_are_no_flat_tuple_of_nodes() -> None:
    program = chain()
    program.graph.output_node().args = ([returned(program)],)
    assert "not a flat tuple of nodes" in broken_rules(program)
    program.graph.output_node().args = ((3,),)
    assert "not a flat tuple of nodes" in broken_rules(program)
