"""The user's metric, by name or as a function."""

import pytest
import torch

from flowopt.errors import ModelNotFound, UserError
from flowopt.workflows.adapting.agreement import Weighted
from flowopt.workflows.adapting.metrics import metric_of

OUTPUTS = ("logits", "hidden")


def test_accuracy_is_the_share_of_rows_whose_largest_logit_is_the_label() -> None:
    name, metric = metric_of("accuracy:labels", OUTPUTS)
    assert metric is not None
    logits = torch.tensor([[0.0, 2.0, 1.0, 0.0], [3.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0]])
    outputs = {"logits": logits}
    assert (name, metric(outputs, outputs, {"labels": torch.tensor([1, 0, 2, 3])})) == ("accuracy", 0.5)


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ({"y": torch.zeros(2)}, "the data has no array 'labels'"),
        ({"labels": torch.zeros(2, 4)}, r"labels has the sizes \[2, 4\], and .* \[2, 4\]"),
    ],
)
def test_accuracy_says_what_labels_are(batch: dict[str, torch.Tensor], said: str) -> None:
    _, metric = metric_of("accuracy:labels", OUTPUTS)
    assert metric is not None
    outputs = {"logits": torch.zeros(2, 4)}
    with pytest.raises(UserError, match=said):
        metric(outputs, outputs, batch)


def test_labels_below_zero_count_neither_for_nor_against() -> None:
    _, metric = metric_of("accuracy:labels", OUTPUTS)
    assert metric is not None and isinstance(metric, Weighted)
    outputs, batch = {"logits": torch.eye(4)}, {"labels": torch.tensor([0, -100, 2, 1])}
    assert metric(outputs, outputs, batch) == pytest.approx(2 / 3)
    assert metric.weight(batch) == 3


def test_a_function_is_a_metric_as_it_is() -> None:
    def mine(*_: object) -> float:
        return 1.0

    assert metric_of(mine, OUTPUTS) == ("mine", mine)
    assert metric_of(None, OUTPUTS) == ("", None)


@pytest.mark.parametrize("text", ["accuracy:", "f1", "accuracy"])
def test_another_text_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        metric_of(text, OUTPUTS)


def test_a_function_that_is_not_there_is_named() -> None:
    with pytest.raises(ModelNotFound, match="no_such_module"):
        metric_of("no_such_module:metric", OUTPUTS)


def failing(outputs: dict[str, torch.Tensor], *_: object) -> float:
    """A metric with a mistake."""
    return float(outputs["f1"])


def test_what_a_users_metric_raises_is_said_to_be_theirs() -> None:
    name, metric = metric_of(f"{__name__}:failing", OUTPUTS)
    assert metric is not None and name.endswith(":failing")
    with pytest.raises(UserError, match="failing raised KeyError: 'f1'") as caught:
        metric({}, {}, {})
    assert "test_metrics.py" in caught.value.why
