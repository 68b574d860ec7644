from collections.abc import Callable

import pytest
import torch
from torch import nn

from flowopt.errors import UserError
from flowopt.program.capture import capture
from flowopt.recovery.select_statistics import Runner, selected
from tests.passes.programs import Written, normal, randomised
from tests.recovery.shifted import accuracy, classifier, images, shifted


def measure(seed: int, *, is_shifted: bool) -> Callable[[Runner], float]:
    x, labels = images(100, seed)
    x = shifted(x) if is_shifted else x
    return lambda run: accuracy(run({"x": x})["output"], labels)


def test_on_shifted_data_the_metric_chooses_the_targets_statistics() -> None:
    data = [{"x": shifted(images(100, 5)[0])}]
    found = selected(classifier(), data, measure(9, is_shifted=True), weights=(1.0, 0.0, 0.1))
    assert [t.name for t in found.trials] == ["source", "alpha 0.1", "re-estimated"]
    assert found.chosen.name == "re-estimated"
    assert found.chosen.figure > found.trials[0].figure + 0.3


def test_where_nothing_is_gained_the_model_stays_as_it_is() -> None:
    found = selected(classifier(), [{"x": images(100, 5)[0]}], lambda run: 1.0, weights=(0.0, 0.5, 1.0))
    assert found.chosen.name == "source"


def test_without_labels_the_entropy_of_the_predictions_decides() -> None:
    program = classifier()
    x = shifted(images(60, 5)[0])
    found = selected(program, [{"x": x[:20]}, {"x": x[20:]}], weights=(0.0, 1.0))
    logits = program.run(x)
    assert isinstance(logits, torch.Tensor)
    entropy = torch.distributions.Categorical(logits=logits).entropy().mean()
    # Sums of 60 entropies in float64, in two parts.
    assert found.trials[0].figure == pytest.approx(float(entropy), rel=1e-10)
    assert found.chosen.figure == min(t.figure for t in found.trials)


def test_says_that_the_predictions_are_not_named() -> None:
    module = Written(lambda m, x: [m.norm(x), x + 1.0], norm=nn.BatchNorm1d(3))
    program = capture(randomised(module), (normal(2, 3),))
    with pytest.raises(UserError, match="output=None does not name the predictions"):
        selected(program, [])


def test_says_that_there_are_no_classes() -> None:
    with pytest.raises(UserError, match="has no classes on axis 2"):
        selected(classifier(), [{"x": images(8, 5)[0]}], class_axis=2)


def test_says_that_a_figure_is_nan() -> None:
    with pytest.raises(UserError, match="the figure of target weight 0 is NaN"):
        selected(classifier(), [{"x": images(8, 5)[0]}], lambda run: float("nan"))


def test_says_that_no_weight_is_tried() -> None:
    with pytest.raises(UserError, match="weights is empty"):
        selected(classifier(), [], weights=())


@pytest.mark.parametrize("weight", [-1.0, 2.0])
def test_says_at_once_that_a_weight_is_no_share(weight: float) -> None:
    said: list[str] = []
    with pytest.raises(UserError, match=f"target_weight={weight} is a share between 0 and 1"):
        selected(classifier(), [{"x": images(8, 5)[0]}], weights=(0.0, weight), on_progress=said.append)
    assert said == []
