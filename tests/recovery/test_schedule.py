"""From when on the statistics of norms stand still."""

from typing import Any

import pytest
from torch import nn

from flowopt.recovery.schedule import SwapSchedule
from flowopt.recovery.settings import RecoverySettings
from tests.recovery.tiny_recovery import tiny_student
from tests.recovery.tiny_transformer import tiny_program


def first_settled(**changed: Any) -> tuple[int | None, int]:
    """The first step with settled norms, and the first with all of them in place."""
    student = tiny_student(tiny_program())
    settled: list[nn.Module] = []
    for leaf in student.leaves.values():
        object.__setattr__(leaf, "settle", lambda leaf=leaf: settled.append(leaf))
    given: dict[str, Any] = {"steps": 100, "schedule": "one-at-a-time"}
    settings = RecoverySettings(**(given | changed))
    schedule = SwapSchedule(student, settings)
    complete = next(step for step in range(settings.steps) if schedule.is_complete(step))
    for step in range(settings.steps):
        schedule.apply(step)
        if settled:
            assert len(settled) == len(student.leaves)
            return step, complete
    return None, complete


def test_one_at_a_time_they_do_not_before_the_last_was_swapped_for_a_while() -> None:
    assert first_settled(settle=0.8) == (40 + 5, 40)
    assert first_settled(settle=0.8, swap_share=1.0) == (80 + 5, 80)


def test_a_later_part_begins_where_it_was_asked_for() -> None:
    assert first_settled(settle=0.2) == (80, 40)
    assert first_settled(settle=0.8, schedule="all") == (20, 0)


@pytest.mark.parametrize("schedule", ["all", "one-at-a-time"])
def test_with_all_of_the_steps_they_never_move_and_with_none_always(schedule: str) -> None:
    assert first_settled(settle=1.0, schedule=schedule)[0] == 0
    assert first_settled(settle=0.0, schedule=schedule)[0] is None
