"""Numbers of tokens that options name."""

from flowopt.errors import UserError


def require_tokens(name: str, count: int) -> None:
    """Refuse an option, such as ``chunk``, that is no number of tokens.

    Raises:
        UserError: it is not whole, or below 1.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise UserError(f"{name}={count!r} is no number of tokens", hint="a whole number from 1 on, such as 64")
