"""What a file may do."""

from typing import Literal

from flowopt.errors import UserError

Trust = Literal["data", "weights", "code"]
"""``data``: nothing; ``weights``: be unpickled by torch's restricted reader; ``code``: run."""


def require_trust(trust: str) -> None:
    """One of the three levels.

    Raises:
        UserError: another word.
    """
    if trust not in ("data", "weights", "code"):
        raise UserError(f"trust={trust!r} must be data, weights or code")
