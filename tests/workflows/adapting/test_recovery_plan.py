"""A plan of recovery knows which steps follow what was done."""

import pytest

from flowopt.errors import UserError
from flowopt.workflows.adapting.recovery_plan import RecoveryPlan


def test_where_nothing_is_said_the_steps_are_those_of_the_method() -> None:
    assert RecoveryPlan().for_norms().ordered == ("ridge", "distill")
    assert RecoveryPlan().for_attention().ordered == ("transfer", "distill")


def test_steps_that_are_said_stay() -> None:
    assert RecoveryPlan(steps=()).for_attention().ordered == ()
    assert RecoveryPlan(steps=("distill",)).for_norms().ordered == ("distill",)


@pytest.mark.parametrize("step", ["ridge", "match"])
def test_what_fits_readers_of_norms_is_refused_after_a_linearization(step: str) -> None:
    with pytest.raises(UserError, match=f"'{step}' is no step of this recovery") as caught:
        RecoveryPlan(steps=(step, "distill")).for_attention()
    assert "no swapped norm" in caught.value.why and "--recover transfer,distill" in caught.value.hint


def test_what_trains_maps_of_attention_is_refused_after_a_swap() -> None:
    with pytest.raises(UserError, match="'transfer' is no step of this recovery") as caught:
        RecoveryPlan(steps=("transfer",)).for_norms()
    assert "no linear attention" in caught.value.why and "--recover ridge,distill" in caught.value.hint


def test_the_report_tells_the_settings_of_the_steps_that_were_made() -> None:
    told = RecoveryPlan().for_attention().settings_for_report()
    assert told["steps"] == ("transfer", "distill") and told["transfer_steps"] == 300
    assert "match_steps" not in told
    assert "match_steps" in RecoveryPlan(steps=("match",)).for_norms().settings_for_report()


@pytest.mark.parametrize("name", ["transfer_steps", "transfer_batches"])
def test_numbers_that_mean_nothing_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"{name}=0 is a number from 1"):
        RecoveryPlan(**{name: 0})  # type: ignore[arg-type]  # each is an integer


def test_a_learning_rate_that_teaches_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="transfer_learning_rate=0.0 is a number above 0"):
        RecoveryPlan(transfer_learning_rate=0.0)
