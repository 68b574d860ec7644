"""Rows of linear attention in trained models."""

from tests.goals.refused_attentions import refused_attentions
from tests.goals.row import Measured, Row, counted


def _refusals() -> Measured:
    outcomes = refused_attentions()
    right, short = counted(outcomes)
    return Measured(f"{right} of {len(outcomes)} models refused as they should be", not short, short)


ROWS = (
    Row(
        "linear.refusals",
        "ALiBi, T5 bias, soft cap, sinks, arbitrary masks by code",
        _refusals,
    ),
)
