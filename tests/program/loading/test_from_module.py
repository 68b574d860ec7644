from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowopt.errors import CaptureError, UserError
from flowopt.program.loading.from_module import program_of_module
from tests.program.models import Affine, TwoInputs


class Anything(nn.Module):
    def forward(self, *tensors: Tensor) -> Tensor:
        return tensors[0] + 1


def program(module: nn.Module, inputs: Mapping[str, Tensor], **options: Any) -> Any:
    return program_of_module(module, inputs, "model.pt", eval_mode=False, **options)


def test_inputs_are_bound_by_name_in_any_order() -> None:
    captured = program(TwoInputs().eval(), {"y": torch.zeros(2, 3), "x": torch.ones(2, 3)})
    assert [one.name for one in captured.inputs] == ["x", "y"]


def test_dynamic_dimensions_reach_the_capture() -> None:
    captured = program(Affine().eval(), {"x": torch.zeros(5, 3)}, dynamic={"x": {0: "rows"}}, dims={"rows": (2, 8)})
    assert [(d.name, d.minimum, d.maximum) for d in captured.dims] == [("rows", 2, 8)]


def test_a_part_in_train_mode_is_refused_too() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Dropout()).eval()
    module[1].train()
    with pytest.raises(CaptureError, match="train-mode") as caught:
        program(module, {"input": torch.zeros(5, 3)})
    assert caught.value.retry == (("--eval", ""),)


def test_without_inputs_every_required_one_is_in_the_command_to_try() -> None:
    with pytest.raises(UserError, match="model.pt says nothing about its inputs") as caught:
        program(TwoInputs().eval(), {})
    assert caught.value.retry == (("--shape", "x=1x16"), ("--shape", "y=1x16"))
    assert "forward takes x, y" in caught.value.why


@pytest.mark.parametrize("inputs", [{"x": torch.ones(2)}, {"x": torch.ones(2), "y": torch.ones(2), "z": torch.ones(2)}])
def test_inputs_of_other_names_are_told_the_right_ones(inputs: dict[str, Tensor]) -> None:
    with pytest.raises(CaptureError, match=f"the inputs {', '.join(inputs)} do not fit model.pt: ") as caught:
        program(TwoInputs().eval(), inputs)
    assert "TwoInputs.forward(" in caught.value.why
    assert "\n--shape x=1x16 --shape y=1x16" in caught.value.hint


@pytest.mark.parametrize(
    ("inputs", "complaint"),
    [({}, "model.pt does not name its inputs"), ({"x": torch.ones(2)}, "the inputs x do not fit model.pt")],
)
def test_a_forward_without_names_needs_a_factory(inputs: dict[str, Tensor], complaint: str) -> None:
    with pytest.raises(CaptureError, match=complaint) as caught:
        program(Anything().eval(), inputs)
    assert "flowopt optimize my_model:factory" in caught.value.hint
    assert caught.value.retry == ()


def test_what_torch_cannot_capture_is_told_with_the_example_inputs() -> None:
    with pytest.raises(CaptureError, match="torch.export cannot capture Affine") as caught:
        program(Affine().eval(), {"x": torch.ones(2, 5)})
    assert caught.value.__notes__ == ["with the example inputs x=2x5:float32"]
