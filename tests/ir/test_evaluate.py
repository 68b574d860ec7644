import gc
import weakref

import pytest
import torch
from torch import Tensor, fx, nn

from flowopt.errors import InternalError
from flowopt.ir.evaluate import evaluate
from flowopt.program.capture import capture
from tests.rewrite.passes import chain


def test_computes_what_the_program_computes() -> None:
    program, x = chain(), torch.randn(4, 3)
    (found,) = evaluate(program.graph, program.read, {"x": x})
    wanted = program.run(x)
    assert isinstance(wanted, Tensor)
    assert torch.equal(found, wanted)


class Long(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = x + 1
        y = first
        for _ in range(8):
            y = torch.sin(y)
        return y, first


def test_every_value_is_freed_after_its_last_reader() -> None:
    program = capture(Long().eval(), (torch.ones(4),))
    alive: dict[str, weakref.ref[Tensor]] = {}
    most = 0

    def observe(node: fx.Node, value: Tensor) -> None:
        nonlocal most
        if node.op == "call_function":
            alive[node.name] = weakref.ref(value)
            most = max(most, sum(r() is not None for r in alive.values()))

    evaluate(program.graph, program.read, {"x": torch.ones(4)}, observe=observe)
    assert len(alive) == 9
    assert most <= 3  # the output that waits, one operand, one result
    gc.collect()
    assert not any(r() is not None for r in alive.values())


def test_a_value_that_nobody_reads_is_freed_at_once() -> None:
    program = chain()
    with program.graph.inserting_before(program.node("relu")):
        unread = program.graph.call_function(torch.ops.aten.neg.default, (program.node("x"),))
    seen: dict[str, weakref.ref[Tensor]] = {}
    still_there: list[bool] = []

    def observe(node: fx.Node, value: Tensor) -> None:
        if node is unread:
            seen["value"] = weakref.ref(value)
        elif node.name == "relu":
            still_there.append(seen["value"]() is not None)

    evaluate(program.graph, program.read, {"x": torch.ones(2, 3)}, observe=observe)
    assert still_there == [False]


def test_parameters_are_read_one_at_a_time_and_dropped() -> None:
    program = chain()
    made: list[weakref.ref[Tensor]] = []
    counts: list[int] = []

    def read(name: str) -> Tensor:
        counts.append(sum(r() is not None for r in made))
        tensor = program.tensors[name].to(torch.float64)
        made.append(weakref.ref(tensor))
        return tensor

    evaluate(program.graph, read, {"x": torch.ones(2, 3).double()}, raised=True)
    assert len(counts) == 4
    assert max(counts) <= 1  # a weight waits while its bias is read, no more


def test_an_override_takes_the_place_of_a_value() -> None:
    program = chain()
    given = torch.full((2, 4), -1.0)
    seen: dict[str, Tensor] = {}
    evaluate(
        program.graph,
        program.read,
        {"x": torch.ones(2, 3)},
        override={"linear": given},
        observe=lambda n, v: seen.update({n.name: v}),
    )
    assert seen["linear"] is given
    assert not seen["relu"].any()


def test_no_gradients_are_recorded() -> None:
    program = chain()
    (found,) = evaluate(program.graph, program.read, {"x": torch.ones(2, 3, requires_grad=True)})
    assert not found.requires_grad


def test_failures_keep_their_type_and_name_the_node() -> None:
    program = chain()
    with pytest.raises(RuntimeError) as caught:
        evaluate(program.graph, program.read, {"x": torch.ones(2, 7)})
    assert "while evaluating %linear" in caught.value.__notes__[0]


def test_a_missing_input_is_named() -> None:
    program = chain()
    with pytest.raises(InternalError, match=r"no value for input 'x'; got \['y'\]"):
        evaluate(program.graph, program.read, {"y": torch.ones(2, 3)})
