"""Random residual stacks through the norm folds: nothing they compute changes, and most have something to fold."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.passes.norm_stacks import STACKS, StackSpec, rewritten

TOGETHER = 15
FIRING = 0.6


def fired_share(examples: int) -> float:
    """The share of stacks in which a pass fires, over that many programs of stacks; each is compared."""
    fired: list[int] = []

    @settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(specs=st.lists(STACKS, min_size=TOGETHER, max_size=TOGETHER))
    def check(specs: list[StackSpec]) -> None:
        _, modules = rewritten(specs)
        fired.append(len(modules))

    check()
    assert len(fired) >= examples
    return sum(fired) / (TOGETHER * len(fired))


def test_300_random_graphs() -> None:
    assert fired_share(300 // TOGETHER) >= FIRING


@pytest.mark.slow
def test_10000_random_graphs() -> None:
    assert fired_share(10_000 // TOGETHER + 1) >= FIRING
