"""Every parametrized layer, through the exact passes, is the plain layer."""

import pytest

from tests.goals.parametrizations import KINDS, check_parametrization


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_but_the_layer(kind: str) -> None:
    check_parametrization(kind)
