"""Text from a file, made fit for a message."""

from typing import Final

_MOST_LINE: Final = 4_000


def printable(text: str, most: int = 80) -> str:
    """The text on one line, shortened to ``most`` characters, with everything that a terminal could obey escaped.

    Control characters, direction marks and lone surrogates become ``\\x1b``, ``\\u202e`` and so on.
    """
    # An escape is longer than its character, so what lies behind ``most`` characters is never needed.
    shown = _escaped(text[: most + 1])
    return shown if len(shown) <= most else shown[: max(most - 3, 0)] + "..."


def printable_lines(text: str, most: int = _MOST_LINE) -> str:
    """The text with its lines kept, each as above; by default, longer than every command that is to be pasted.

    For whole messages, which can quote what a file or its name holds anywhere.
    """
    return "\n".join(printable(line, most) for line in text.split("\n"))


def _escaped(line: str) -> str:
    if line.isprintable():
        return line
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in line)
