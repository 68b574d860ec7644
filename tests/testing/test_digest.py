"""The digest sees every change of what belongs to the caller, and names it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowopt.program.program import Program
from flowopt.testing.digest import changed, digest


class Everything(nn.Module):
    """One of each kind of thing that a module keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.register_buffer("kept", torch.zeros(2))
        self.register_buffer("unkept", torch.zeros(2), persistent=False)
        self.register_buffer("absent", None)
        self.attribute = torch.zeros(2)
        self.several = [torch.zeros(2), {"inner": torch.zeros((), dtype=torch.complex64)}]
        self.bfloats = torch.zeros(2, dtype=torch.bfloat16)
        self.empty = torch.zeros(0, 3)
        self.sparse = torch.zeros(2, 2).to_sparse()
        self.steps = 3


def module_with(change: Callable[[Any], object]) -> tuple[str, ...]:
    torch.manual_seed(0)
    module = Everything().eval()
    before = digest(module)
    change(module)
    return changed(before, digest(module))


def set_negative_zero(tensor: Tensor) -> None:
    tensor.view(-1)[0] = -0.0


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda m: m.fc.weight.data.mul_(2), "fc.weight"),
        (lambda m: m.fc.bias.requires_grad_(False), "fc.bias"),
        (lambda m: set_negative_zero(m.kept), "kept"),
        (lambda m: set_negative_zero(m.unkept), "unkept"),
        (lambda m: set_negative_zero(m.attribute), "attribute"),
        (lambda m: set_negative_zero(m.several[0]), "several[0]"),
        (lambda m: m.several[1]["inner"].add_(1j), "several[1]['inner']"),
        (lambda m: set_negative_zero(m.bfloats), "bfloats"),
        (lambda m: setattr(m, "empty", torch.zeros(0, 4)), "empty"),
        (lambda m: setattr(m, "sparse", torch.ones(2, 2).to_sparse()), "sparse"),
        (lambda m: setattr(m, "kept", torch.zeros(2, dtype=torch.int32)), "kept"),
        (lambda m: setattr(m, "steps", 4), "steps"),
        (lambda m: m.fc.train(), "fc.training"),
        (lambda m: m.register_buffer("late", torch.zeros(1)), "late"),
        (lambda m: delattr(m, "unkept"), "unkept"),
    ],
)
def test_names_what_changed_in_a_module(change: Callable[[Any], object], name: str) -> None:
    assert name in module_with(change)


def test_an_untouched_module_has_the_same_digest() -> None:
    assert module_with(lambda m: m.fc(torch.ones(1, 2))) == ()


def test_equal_values_elsewhere_are_no_change() -> None:
    assert module_with(lambda m: setattr(m, "attribute", m.attribute.clone())) == ()


def test_takes_tensors_without_content() -> None:
    assert digest(nn.Linear(2, 2, device="meta")).keys() >= {"weight", "bias"}


def test_names_what_changed_in_a_program(program: Program) -> None:
    copy = program.copy()
    copy.tensors["fc.bias"] = copy.tensors["fc.bias"].clone()
    before = digest(copy)
    set_negative_zero(copy.tensors["fc.bias"])
    assert changed(before, digest(copy)) == ("fc.bias",)
    copy.graph.erase_node(copy.graph.output_node())
    assert changed(before, digest(copy)) == ("the graph", "fc.bias")


def test_names_the_interface_of_a_program(program: Program) -> None:
    other = program.copy()
    other.outputs = ()
    assert changed(digest(program), digest(other)) == ("the interface",)


def test_names_the_example_inputs_of_a_program(program: Program) -> None:
    other = program.copy()
    other.example = {"x": program.example["x"] + 1}
    assert changed(digest(program), digest(other)) == ("example['x']",)


def test_names_an_input_that_changed() -> None:
    x, model = torch.zeros(2), nn.Identity()
    before = digest(model, (x,)), digest(model, {"x": x})
    x.add_(1)
    assert changed(before[0], digest(model, (x,))) == ("input[0]",)
    assert changed(before[1], digest(model, {"x": x})) == ("input['x']",)
