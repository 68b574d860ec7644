"""Text from a file, made fit for a message."""


def printable(text: str, most: int = 80) -> str:
    """The text on one line, shortened to ``most`` characters, with everything that a terminal could obey escaped.

    Control characters, direction marks and lone surrogates become ``\\x1b``, ``\\u202e`` and so on.
    """
    # An escape is longer than its character, so what lies behind ``most`` characters is never needed.
    shown = "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text[: most + 1]
    )
    return shown if len(shown) <= most else shown[: max(most - 3, 0)] + "..."
