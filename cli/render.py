"""Results on the screen. The one file that imports rich."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from flowopt.cli.summary import (
    changed_operators,
    counted,
    explain_headline,
    grown_passes,
    mostly_refused,
    optimize_headline,
    regime_rows,
    verify_headline,
)
from flowopt.formats.printable import printable, printable_lines
from flowopt.pipeline.pass_entry import OWN_PACKAGE, PassEntry
from flowopt.pipeline.presets import DEFAULT_PRESET, PRESETS
from flowopt.report.by_regime import by_output_and_regime
from flowopt.report.passes import PassRecord
from flowopt.report.report import Report
from flowopt.report.verdict import Finding, Verdict

_MOST_FINDINGS = 10
_MOST_STEP = 200
_MOST_ROWS = 20
_ALWAYS = 8
_WORST = ("max_error", "own_error")


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


class Renderer:
    """Prints results to stdout, in lines that fit its width."""

    def __init__(self) -> None:
        # Names of modules and operators hold brackets and colons, which are markup and emoji to rich.
        self._console = Console(markup=False, emoji=False, highlight=False)

    def optimize(self, report: Report, verdict: Verdict, model: str, folder: Path | None, last: str) -> None:
        """One optimization: outcome first, what is left to do last."""
        self._line(optimize_headline(report, verdict, model), style="bold")
        self._findings(verdict.findings)
        self._passes(report.passes)
        self._operators(report)
        self._bytes(report)
        self._levels(report)
        for note in verdict.notes:
            self._line(f"note: {note}")
        for warning in report.warnings:
            self._line(f"warning: {warning}", style="yellow")
        if folder is not None:
            level = report.runtime.get("level")
            names = ", ".join(sorted(name for name in os.listdir(folder) if not name.startswith(".")))
            self._line(f"artifact: {folder} ({names}{f'; runs at level {level}' if level else ''})")
        if last:
            self._line(last, style="bold")

    def explain(self, report: Report, model: str) -> None:
        """Every site of every pass, then refusals counted."""
        self._line(explain_headline(report, model), style="bold")
        for record in report.passes:
            counts = f"{counted(record.anchors, 'site')}, {len(record.applied)} applied, {len(record.refused)} refused"
            self._line()
            self._line(f"{record.name} ({record.exactness}): {counts}", style="bold")
            self._sites(record)
            if record.refused:
                self._line("  refused: " + ", ".join(f"{code} {n}" for code, n in record.refusal_counts.items()))

    def verify(self, verdict: Verdict, reference: str, candidate: str, replay: str = "") -> None:
        """One verdict: findings before figures, the command that replays the worst case last."""
        self._line(verify_headline(verdict, reference, candidate), style="bold")
        self._findings(verdict.findings)
        if verdict.figures:
            self._regimes(verdict)
            self._line(f"cases: {', '.join(verdict.cases)}")
        for note in verdict.notes:
            self._line(f"note: {note}")
        if replay:
            self._line(f"the worst case again: {replay}")

    def passes(self, found: Sequence[PassEntry]) -> None:
        """The list of passes and presets."""
        self._line(f"{len(found)} passes; flowopt passes NAME documents one", style="bold")
        rows = [[e.name, e.exactness, e.summary, e.package] for e in found]
        heads = ["pass", "exactness", "summary", "package"]
        # While flowopt brings them all, a column would say nothing.
        shown = len(heads) if any(e.package != OWN_PACKAGE for e in found) else len(heads) - 1
        self._table(heads[:shown], [row[:shown] for row in rows], words=shown)
        for entry in found:
            if entry.problem:
                self._line(f"{entry.name} cannot be used: {entry.problem}", style="yellow")
        rows = [[f"{n} (default)" if n == DEFAULT_PRESET else n, ", ".join(p)] for n, p in PRESETS.items()]
        self._table(["preset", "passes"], rows, words=2)

    def one_pass(self, entry: PassEntry, options: Sequence[tuple[str, str, str]]) -> None:
        """One pass: its documentation as written, then its options."""
        self._line(f"{entry.name} ({entry.exactness}): {entry.summary}", style="bold")
        if entry.package != OWN_PACKAGE:
            self._line(f"brought by the package {entry.package}: {entry.module}:{entry.class_name}")
        self._line()
        self._line(entry.documentation)
        if options:
            self._table(["option", "default", "meaning"], [list(option) for option in options], words=3)
            self._line(f"used as {entry.name}:{options[0][0]}={options[0][1]}")
        elif entry.path is not None:
            self._line("\nIt has no options.")

    def _passes(self, records: Sequence[PassRecord]) -> None:
        rows = [
            [
                record.name,
                record.outcome,
                str(record.anchors),
                str(len(record.applied)),
                str(len(record.refused)),
                f"{record.seconds + record.verify_seconds:.2f}",
                mostly_refused(record),
            ]
            for record in records
        ]
        heads = ["pass", "outcome", "sites", "applied", "refused", "seconds", "mostly"]
        self._table(heads, rows, words=2, last_is_words=True)

    def _operators(self, report: Report) -> None:
        before, after = sum(report.census_before.values()), sum(report.census_after.values())
        rows = [[name, str(b), str(a)] for name, b, a in changed_operators(report)]
        self._table(["operators", "before", "after"], [*rows, ["all", str(before), str(after)]], words=1)

    def _bytes(self, report: Report) -> None:
        before, after = report.parameter_bytes
        change = (
            f"before, {after:,} after ({(after - before) / before:+.1%})" if before != after else "before and after"
        )
        self._line()
        self._line(f"stored tensors: {before:,} bytes {change}")
        for name, grown in grown_passes(report):
            self._line(f"  {name} adds {grown:,} bytes: copies of shared weights, new biases")
        if report.census_lowered:
            self._line(f"lowered to {sum(report.census_lowered.values())} ONNX operators")

    def _regimes(self, verdict: Verdict) -> None:
        rows = sorted(by_output_and_regime(verdict.figures), key=lambda row: -row.ratio)
        shown = rows[:_MOST_ROWS]
        for output in dict.fromkeys(row.output for row in shown):
            lines = [line for row in shown if row.output == output for line in regime_rows(row)]
            heads = [
                printable(output, _MOST_STEP),
                "max",
                "p99",
                "rms",
                "ulp",
                "SNR",
                "1-cos",
                "ratio",
                "ignored",
                "undecided",
            ]
            kept = [at for at in range(len(heads)) if at < _ALWAYS or any(line[at] not in ("0", "") for line in lines)]
            self._table([heads[at] for at in kept], [[line[at] for at in kept] for line in lines], words=1, gap=1)
        self._line()
        if len(rows) > _MOST_ROWS:
            self._line(f"and {counted(len(rows) - _MOST_ROWS, 'row')} with smaller ratios; --json FILE has them all")
        self._line("errors are against the float64 oracle, the worst of all cases of one kind of numbers; SNR in dB")
        self._line("ratio: the candidate's error over what is allowed, at most 1")
        self._line(f"power: a relative change above {verdict.power:.1e} would have been seen in every output")
        if any(row.ignored for row in rows):
            self._line("ignored: elements where the oracle itself is not finite")
        if any(row.undecided for row in rows):
            self._line("undecided: elements that hang on a decision which rounding may turn either way")

    def _levels(self, report: Report) -> None:
        rows = [
            [
                one.level,
                one.verdict.outcome.value,
                str(len(one.verdict.cases)),
                *(f"{max((getattr(f, name) for f in one.verdict.figures), default=0.0):.1e}" for name in _WORST),
                f"{max((f.ratio for f in one.verdict.figures), default=0.0):.2f}",
                f"{one.verdict.power:.1e}",
            ]
            for one in report.lowered
        ]
        if rows:
            heads = ["optimisations", "verdict", "cases", "max error", "own error", "ratio", "power"]
            self._table(heads, rows, words=2)

    def _sites(self, record: PassRecord) -> None:
        table = Table.grid(padding=(0, 0, 0, 2), pad_edge=True)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for done in record.applied:
            table.add_row(Text("applied", style="green"), _lines(done.site, done.module, done.summary, done.source))
        for no in record.refused:
            table.add_row(Text(no.code, style="yellow"), _lines(no.site, no.module, no.message, no.source))
        if table.row_count:
            self._print(table)

    def _findings(self, findings: Sequence[Finding]) -> None:
        for finding in findings[:_MOST_FINDINGS]:
            self._line(f"  {finding.gate} gate, {finding.where}: {finding.message} (case {finding.case})", style="red")
        if len(findings) > _MOST_FINDINGS:
            self._line(f"  and {len(findings) - _MOST_FINDINGS} more; --json FILE has them all", style="red")

    def _table(
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
        self._line()
        self._print(table)

    def _print(self, what: RenderableType, *, soft_wrap: bool = False) -> None:
        # Captured, because rich fills lines with blanks up to the table's width, and because its own writing ends the
        # process with code 1, which means "different", when the reader of a pipe has seen enough.
        with self._console.capture() as captured:
            self._console.print(what, soft_wrap=soft_wrap)
        self._console.file.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))

    def _line(self, text: str = "", style: str = "") -> None:
        # Soft: the terminal wraps it, and a path or a command is copied in one piece.
        self._print(Text(printable_lines(text), style), soft_wrap=True)


def _lines(site: str, module: str, what: str, source: str) -> str:
    place = f"{module} ({site})" if module else site
    return printable_lines("\n".join(line for line in (place, what, source) if line))
