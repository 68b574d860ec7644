"""A program on another device. The device of shapes without values tells what would have been left behind."""

import torch
from torch import Tensor, nn

import flowopt
from flowopt.ir.text import graph_text
from flowopt.recovery.placed import placed
from flowopt.recovery.trainable import Trainable


class MakesTensors(nn.Module):
    """Positions are made on the device of the input, and added to it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        positions = torch.arange(x.shape[1], device=x.device)
        return self.layer(x + positions[None, :, None])


def test_tensors_that_are_made_on_the_way_move_too() -> None:
    program = flowopt.capture(MakesTensors().eval(), (torch.ones(2, 5, 4),))
    meta = torch.device("meta")
    moved = placed(program, meta)
    (value,) = moved.run_named({"x": torch.ones(2, 5, 4, device=meta)}).values()
    assert value.device == meta and value.shape == (2, 5, 4)
    student = Trainable(moved)
    assert {parameter.device for parameter in student.parameters()} == {meta}


def test_a_program_that_stays_where_it_is_shares_its_tensors() -> None:
    program = flowopt.capture(MakesTensors().eval(), (torch.ones(2, 5, 4),))
    again = placed(program, torch.device("cpu"))
    assert graph_text(again.graph) == graph_text(program.graph)
    x = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(1))
    assert torch.equal(again.run_named({"x": x})["output"], program.run_named({"x": x})["output"])
    assert again.tensors["layer.weight"].data_ptr() == program.tensors["layer.weight"].data_ptr()
