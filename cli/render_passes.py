"""Passes on the screen: the list, and one in full."""

from collections.abc import Sequence

from flowopt.cli.render import Screen
from flowopt.pipeline.pass_entry import OWN_PACKAGE, PassEntry
from flowopt.pipeline.presets import DEFAULT_PRESET, PRESETS


def render_passes(found: Sequence[PassEntry]) -> None:
    """The list of passes and presets."""
    screen = Screen()
    screen.line(f"{len(found)} passes; flowopt passes NAME documents one", style="bold")
    rows = [[e.name, e.exactness, e.summary, e.package] for e in found]
    heads = ["pass", "exactness", "summary", "package"]
    # While flowopt brings them all, a column would say nothing.
    shown = len(heads) if any(e.package != OWN_PACKAGE for e in found) else len(heads) - 1
    screen.table(heads[:shown], [row[:shown] for row in rows], words=shown)
    for entry in found:
        if entry.problem:
            screen.line(f"{entry.name} cannot be used: {entry.problem}", style="yellow")
    rows = [[f"{n} (default)" if n == DEFAULT_PRESET else n, ", ".join(p)] for n, p in PRESETS.items()]
    screen.table(["preset", "passes"], rows, words=2)


def render_pass(entry: PassEntry, options: Sequence[tuple[str, str, str]]) -> None:
    """One pass: its documentation as written, then its options."""
    screen = Screen()
    screen.line(f"{entry.name} ({entry.exactness}): {entry.summary}", style="bold")
    if entry.package != OWN_PACKAGE:
        screen.line(f"brought by the package {entry.package}: {entry.module}:{entry.class_name}")
    screen.line()
    screen.line(entry.documentation)
    if options:
        screen.table(["option", "default", "meaning"], [list(option) for option in options], words=3)
        screen.line(f"used as {entry.name}:{options[0][0]}={options[0][1]}")
    elif entry.path is not None:
        screen.line("\nIt has no options.")
