from collections.abc import Callable

import pytest
import torch

from flowopt.ir.fingerprint import fingerprint, same_structure
from flowopt.program.program import Program
from tests.rewrite.passes import aten, chain


def own_weights(program: Program) -> Program:
    program.tensors = {name: tensor.clone() for name, tensor in program.tensors.items()}
    return program


def change_target(program: Program) -> None:
    program.node("relu").target = aten.neg.default


def change_argument(program: Program) -> None:
    program.node("relu_1").args = (program.node("linear"),)


def change_number(program: Program) -> None:
    program.node("relu").kwargs = {"alpha": 2.0}


def change_output(program: Program) -> None:
    program.graph.output_node().args = ((program.node("linear_1"),),)


def add_node(program: Program) -> None:
    with program.graph.inserting_before(program.node("relu")):
        program.graph.call_function(aten.neg.default, (program.node("x"),))


def write_in_place(program: Program) -> None:
    program.tensors["first.weight"].mul_(1.0)


def write_through_a_view(program: Program) -> None:
    program.tensors["first.weight"].t()[0].zero_()


def replace_by_a_copy(program: Program) -> None:
    program.tensors["first.weight"] = program.tensors["first.weight"].clone()


def add_tensor(program: Program) -> None:
    program.tensors["more"] = torch.zeros(1)


def drop_tensor(program: Program) -> None:
    del program.tensors["first.weight"]


GRAPH_EDITS = [change_target, change_argument, change_number, change_output, add_node]
TENSOR_EDITS = [write_in_place, write_through_a_view, replace_by_a_copy, add_tensor, drop_tensor]


@pytest.mark.parametrize("change", GRAPH_EDITS + TENSOR_EDITS)
def test_sees(change: Callable[[Program], None]) -> None:
    program = own_weights(chain())
    before = fingerprint(program.graph, program.tensors)
    assert fingerprint(program.graph, program.tensors) == before
    change(program)
    assert fingerprint(program.graph, program.tensors) != before


def test_a_copy_has_the_same_fingerprint() -> None:
    program = own_weights(chain())
    copied = program.copy()
    assert fingerprint(copied.graph, copied.tensors) == fingerprint(program.graph, program.tensors)


def test_tensors_of_inference_mode_have_no_version() -> None:
    program = chain()
    with torch.inference_mode():
        program.tensors["first.weight"] = torch.zeros(4, 3)
    assert fingerprint(program.graph, program.tensors)


@pytest.mark.parametrize("change", GRAPH_EDITS)
def test_structures_differ_after(change: Callable[[Program], None]) -> None:
    program = chain()
    assert same_structure(program.graph, chain().graph)
    change(program)
    assert not same_structure(program.graph, chain().graph)
