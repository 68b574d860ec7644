"""Mutants that nothing can tell from the original, each with the reason."""

EXCUSES: dict[tuple[str, str, str], str] = {}
"""(program, kind, node) to the reason why no input shows the mistake."""


def excuse_of(program: str, kind: str, node: str) -> str:
    """The reason why a mutant cannot be seen; empty where none is written down."""
    return EXCUSES.get((program, kind, node), "")
