"""The user's metric, by name or as a function."""

import pytest
import torch
from torch import nn

import flowopt
from flowopt.errors import ModelNotFound, UserError
from flowopt.program.program import Program
from flowopt.workflows.adapting.metrics import metric_of


def _program() -> Program:
    return flowopt.capture(nn.Linear(3, 4).eval(), (torch.zeros(2, 3),))


def test_accuracy_is_the_share_of_rows_whose_largest_logit_is_the_label() -> None:
    program = _program()
    name, metric = metric_of("accuracy:labels", program)
    assert metric is not None
    logits = torch.tensor([[0.0, 2.0, 1.0, 0.0], [3.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0]])
    outputs = {program.outputs[0].name: logits}
    assert (name, metric(outputs, outputs, {"labels": torch.tensor([1, 0, 2, 3])})) == ("accuracy", 0.5)


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ({"y": torch.zeros(2)}, "the data has no array 'labels'"),
        ({"labels": torch.zeros(2, 4)}, r"labels has the sizes \[2, 4\], and .* \[2, 4\]"),
    ],
)
def test_accuracy_says_what_labels_are(batch: dict[str, torch.Tensor], said: str) -> None:
    program = _program()
    _, metric = metric_of("accuracy:labels", program)
    assert metric is not None
    outputs = {program.outputs[0].name: torch.zeros(2, 4)}
    with pytest.raises(UserError, match=said):
        metric(outputs, outputs, batch)


def test_a_function_is_a_metric_as_it_is() -> None:
    def mine(*_: object) -> float:
        return 1.0

    assert metric_of(mine, _program()) == ("mine", mine)
    assert metric_of(None, _program()) == ("", None)


@pytest.mark.parametrize("text", ["accuracy:", "f1", "accuracy"])
def test_another_text_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        metric_of(text, _program())


def test_a_function_that_is_not_there_is_named() -> None:
    with pytest.raises(ModelNotFound, match="no_such_module"):
        metric_of("no_such_module:metric", _program())
