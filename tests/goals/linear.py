"""Rows of linear attention in trained models."""

from tests.goals import linear_quality, linear_speed
from tests.goals.refused_attentions import refused_attentions
from tests.goals.row import Measured, Row, counted


def _refusals() -> Measured:
    outcomes = refused_attentions() | {"MiniLM at 256": linear_speed.problem_of_minilm()}
    right, short = counted(outcomes)
    return Measured(f"{right} of {len(outcomes)} models refused as they should be", not short, short)


ROWS = (
    Row(
        "linear.refusals",
        "ALiBi, T5 bias, soft cap, sinks, arbitrary masks by code; MiniLM at 256 below",
        _refusals,
    ),
    *linear_quality.ROWS,
    *linear_speed.ROWS,
)
