from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from flowopt.program.capture import capture
from flowopt.program.names import child_keys, is_bare, output_names
from tests.program.models import Pair, Scores


class Returning(nn.Module):
    """Returns what a function makes of x."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor) -> Any:
        return self.make(x)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda x: x + 1, ["output"]),
        (lambda x: (x + 1,), ["output.0"]),
        (lambda x: [x + 1, x + 2], ["output.0", "output.1"]),
        (lambda x: {"b": x + 1, "a": x + 2}, ["b", "a"]),
        (lambda x: {"a": {"b": x + 1}, "c": (x + 2, [x + 3])}, ["a.b", "c.0", "c.1.0"]),
        (lambda x: {5: x + 1, 7: x + 2}, ["output.5", "output.7"]),
        (lambda x: OrderedDict(b=x + 1, a=x + 2), ["b", "a"]),
        (lambda x: Pair(left=x + 1, right=x + 2), ["left", "right"]),
        (lambda x: Scores(logits=x + 1, hidden=x + 2), ["logits", "hidden"]),
        (lambda x: Scores(logits=x + 1, loss=x + 2), ["logits", "loss"]),
        (lambda x: {"scores": Scores(logits=x + 1), "x": x}, ["scores.logits", "x"]),
        (lambda x: {"a": None, "b": x + 1, "c": 3}, ["b"]),
        (lambda x: (None, x + 1, True), ["output.1"]),
        (lambda x: {"a.b": x + 1, "a": {"b": x + 2}}, ["a.b", "a.b_2"]),
    ],
)
def test_outputs_have_dotted_names(make: Any, names: list[str]) -> None:
    module = Returning(make).eval()
    program = capture(module, (torch.zeros(2),))
    assert [o.name for o in program.outputs] == names
    tensors = [leaf for leaf in pytree.tree_leaves(module(torch.ones(2))) if isinstance(leaf, Tensor)]
    found = program.run_named(program.bind((torch.ones(2),), {}))
    assert list(found) == names
    for value, wanted in zip(found.values(), tensors, strict=True):
        assert torch.equal(value, wanted)


def test_names_of_library_outputs() -> None:
    from transformers.modeling_outputs import BaseModelOutput

    module = Returning(lambda x: BaseModelOutput(last_hidden_state=x + 1, hidden_states=(x + 2, x + 3))).eval()
    program = capture(module, (torch.zeros(2),))
    assert [o.name for o in program.outputs] == ["last_hidden_state", "hidden_states.0", "hidden_states.1"]


@pytest.mark.parametrize(
    ("make", "is_single"), [(lambda x: x + 1, True), (lambda x: (x + 1,), False), (lambda x: {"y": x + 1}, False)]
)
def test_one_bare_output_comes_back_bare(make: Any, is_single: bool) -> None:
    result = capture(Returning(make).eval(), (torch.zeros(2),)).run(torch.zeros(2))
    assert isinstance(result, Tensor) is is_single


def test_inputs_are_flattened_to_the_names_that_export_gives() -> None:
    class Nested(nn.Module):
        def forward(self, images: list[Tensor], options: dict[str, Any], scores: Scores) -> Tensor:
            result: Tensor = images[0] + images[1] + options["gain"] + options["deep"][0] + scores.logits
            return result

    x = torch.zeros(2)
    program = capture(Nested().eval(), ([x, x + 1], {"gain": x + 2, "deep": (x + 3,)}, Scores(logits=x + 4)))
    names = ["images_0", "images_1", "options_gain", "options_deep_0", "scores_logits"]
    assert [i.name for i in program.inputs] == names
    assert {name: float(t[0]) for name, t in program.example.items()} == dict(
        zip(names, (0.0, 1.0, 2.0, 3.0, 4.0), strict=True)
    )


def test_a_leaf_is_bare_and_a_container_is_not() -> None:
    assert is_bare(pytree.tree_structure(1))
    assert not is_bare(pytree.tree_structure((1,)))
    assert output_names(pytree.tree_structure(1)) == ("output",)


def test_keys_of_one_level() -> None:
    assert child_keys(pytree.tree_structure({"b": (1, 2), 3: 4})) == ["b", "3"]
    assert child_keys(pytree.tree_structure(Pair(1, 2))) == ["left", "right"]
    assert child_keys(pytree.tree_structure([1, (2, 3)])) == ["0", "1"]
