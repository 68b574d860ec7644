"""Levels of verification."""

from typing import Final, Literal

from flowopt.errors import UserError

Level = Literal["quick", "full"]
"""``quick``: four named cases, for every pass of every run. ``full``: the whole battery and stressed weights."""

LEVELS: Final[tuple[Level, ...]] = ("quick", "full")


def require_level(level: str) -> None:
    """A level that does not exist would check less than its user believes.

    Raises:
        UserError: ``level`` is none of ``LEVELS``.
    """
    if level not in LEVELS:
        raise UserError(f"level={level!r} must be {' or '.join(map(repr, LEVELS))}")
