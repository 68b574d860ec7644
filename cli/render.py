"""The screen, and the progress beside it. The one file that imports rich; what is shown is in ``cli/render_*.py``."""

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from flowopt.formats.printable import printable, printable_lines

_MOST_STEP = 200


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """What to call with each step: a spinner on stderr where that is a terminal, nothing elsewhere.

    What the model's own code prints meanwhile goes to stderr, so that stdout carries the result alone.
    """
    with contextlib.redirect_stdout(sys.stderr):
        if not sys.stderr.isatty():
            yield lambda _: None
            return
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
            task = shown.add_task("starting", total=None)
            yield lambda step: shown.update(task, description=printable(step, _MOST_STEP))


class Screen:
    """Prints lines and tables to stdout, in its width. Whatever a file says in them can only be read."""

    def __init__(self) -> None:
        # Names of modules and operators hold brackets and colons, which are markup and emoji to rich.
        self._console = Console(markup=False, emoji=False, highlight=False)

    def table(
        self,
        heads: Sequence[str],
        rows: Iterable[Sequence[str]],
        *,
        words: int,
        last_is_words: bool = False,
        gap: int = 2,
    ) -> None:
        """A table under an empty line; the first ``words`` columns are text, the others numbers."""
        table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="bold")
        for index, head in enumerate(heads):
            is_text = index < words or (last_is_words and index == len(heads) - 1)
            table.add_column(head, justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text)
        for row in rows:
            table.add_row(*map(printable_lines, row))
        self.line()
        self._print(table)

    def marked(self, rows: Iterable[tuple[str, str, str]]) -> None:
        """Rows of a mark, its style, and a text of several lines that stands beside it; nothing without rows."""
        table = Table.grid(padding=(0, 0, 0, 2), pad_edge=True)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for mark, style, text in rows:
            table.add_row(Text(mark, style=style), printable_lines(text))
        if table.row_count:
            self._print(table)

    def line(self, text: str = "", style: str = "") -> None:
        """One line, or an empty one."""
        # Soft: the terminal wraps it, and a path or a command is copied in one piece.
        self._print(Text(printable_lines(text), style), soft_wrap=True)

    def prose(self, text: str, style: str = "") -> None:
        """Words on as many lines as the width asks for; nothing in them is to be copied."""
        self._print(Text(printable_lines(text), style))

    def _print(self, what: RenderableType, *, soft_wrap: bool = False) -> None:
        # Captured, because rich fills lines with blanks up to the table's width, and because its own writing ends the
        # process with code 1, which means "different", when the reader of a pipe has seen enough.
        with self._console.capture() as captured:
            self._console.print(what, soft_wrap=soft_wrap)
        self._console.file.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))
