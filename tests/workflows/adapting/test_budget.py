"""Limits on what adaptation may cost."""

import math

import pytest

from flowopt.errors import UserError
from flowopt.report.adaptation import Agreement, Stage
from flowopt.workflows.adapting.budget import QualityBudget


def _stage(cosine: float = 0.995, top1: float | None = 0.98, metric: float | None = 0.9) -> Stage:
    return Stage("distill", (Agreement("logits", 10, cosine, cosine, 0.1, top1),), metric)


@pytest.mark.parametrize(
    "budget",
    [QualityBudget(), QualityBudget(min_cosine=0.995), QualityBudget(min_agreement=0.98), QualityBudget(max_drop=0.06)],
)
def test_what_is_within_says_nothing(budget: QualityBudget) -> None:
    assert budget.broken(_stage(), original_metric=0.95) == ()


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (QualityBudget(min_cosine=0.999), "logits: mean cosine 0.9950, 0.999 is the least"),
        (QualityBudget(min_agreement=0.99), "logits: top-1 agreement 98.00%, 99.00% is the least"),
        (QualityBudget(max_error=0.01), "logits: relative error 0.1, 0.01 is the most"),
        (QualityBudget(max_drop=0.01), "the metric fell by 0.05, 0.01 is the most"),
    ],
)
def test_what_is_beyond_is_said(budget: QualityBudget, said: str) -> None:
    assert budget.broken(_stage(), original_metric=0.95) == (said,)


def test_a_not_a_number_is_beyond_every_limit() -> None:
    budget = QualityBudget(min_cosine=0.0, min_agreement=0.0, max_drop=1e9)
    assert len(budget.broken(_stage(math.nan, math.nan, math.nan), original_metric=0.95)) == 3


def test_outputs_without_a_choice_have_no_agreement_to_limit() -> None:
    assert QualityBudget(min_agreement=1.0).broken(_stage(top1=None), None) == ()


def test_a_limit_on_a_metric_needs_one() -> None:
    with pytest.raises(UserError, match="max_drop limits a metric"):
        QualityBudget(max_drop=0.1).broken(_stage(metric=None), None)


@pytest.mark.parametrize(
    "wrong", [{"min_cosine": 1.1}, {"min_agreement": -0.1}, {"max_drop": -1.0}, {"max_drop": math.inf}]
)
def test_limits_that_mean_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match="is a number from 0"):
        QualityBudget(**wrong)


def test_what_is_not_measured_cannot_be_limited() -> None:
    QualityBudget(max_error=0.9).require_measurable({"value": 1}, has_metric=False)
    QualityBudget(min_agreement=0.9, max_drop=0.1).require_measurable(
        {"value": 1, "logits": "classes"}, has_metric=True
    )
    with pytest.raises(UserError, match="max_drop limits a metric"):
        QualityBudget(max_drop=0.1).require_measurable({"logits": 4}, has_metric=False)
    for budget in (QualityBudget(min_agreement=0.9), QualityBudget(min_cosine=0.9)):
        with pytest.raises(UserError, match="those of value, other have one"):
            budget.require_measurable({"value": 1, "other": 1}, has_metric=True)
