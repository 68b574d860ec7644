"""The stand-ins by name: which there are, what they take, and which of them a step can carry."""

import pytest

from flowopt.errors import UserError
from flowopt.ops.attention import LINEARIZATIONS, linearization
from flowopt.ops.attention.linearizations import STEPPED, options_of
from flowopt.recurrence.step_program import step_program
from tests.recurrence.causal_models import decoder


@pytest.mark.parametrize("name", list(LINEARIZATIONS))
def test_those_that_a_step_carries_are_those_that_it_takes_apart(name: str) -> None:
    program = decoder(name)
    if name in STEPPED:
        assert step_program(program, "sequence").recurrence.states
        return
    with pytest.raises(UserError, match="cannot go token by token"):
        step_program(program, "sequence")


@pytest.mark.parametrize("name", ["hybird", "softmax", "x"])
def test_a_name_that_is_none_is_told_all_that_there_are(name: str) -> None:
    with pytest.raises(UserError) as caught:
        linearization(name)
    assert caught.value.hint.endswith(f"one of {', '.join(LINEARIZATIONS)}")


def test_a_misspelled_name_is_told_the_nearest_first() -> None:
    with pytest.raises(UserError) as caught:
        linearization("hybird")
    assert caught.value.hint.startswith("did you mean hybrid")


@pytest.mark.parametrize(
    ("name", "options"),
    [("elu", ("chunk",)), ("hybrid", ("chunk", "window")), ("flow", ("chunk", "eps", "clamp"))],
)
def test_the_options_of_a_stand_in_are_those_of_its_features_too(name: str, options: tuple[str, ...]) -> None:
    assert options_of(name) == options
    assert "directions" in options_of("favor")
