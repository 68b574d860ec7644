"""The exact preset as a whole: right, and at rest after one run."""

import pytest

from tests.goals.constants import check_exact_preset
from tests.zoo.models import ZOO

FAST = ("digits-vit", "llama")


@pytest.mark.parametrize("name", FAST)
def test_it_is_right_and_idempotent(name: str) -> None:
    check_exact_preset(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ZOO if name not in FAST])
def test_it_is_right_and_idempotent_on_every_model(name: str) -> None:
    check_exact_preset(name)
