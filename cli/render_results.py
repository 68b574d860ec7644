"""Results of runs on the screen: an optimization, what could be rewritten, a verdict."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from flowopt.cli.render import Screen
from flowopt.cli.summary import (
    changed_operators,
    counted,
    explain_headline,
    grown_passes,
    mostly_refused,
    optimize_headline,
    recurrence_line,
    regime_rows,
    verify_headline,
)
from flowopt.formats.printable import printable
from flowopt.report.by_regime import by_output_and_regime
from flowopt.report.passes import PassRecord
from flowopt.report.report import Report
from flowopt.report.verdict import Finding, Verdict

_MOST_FINDINGS = 10
_MOST_NAME = 200
_MOST_ROWS = 20
_ALWAYS = 8
_WORST = ("max_error", "own_error")


class Renderer:
    """Prints results to stdout, in lines that fit its width."""

    def __init__(self) -> None:
        self._screen = Screen()

    def optimize(self, report: Report, verdict: Verdict, model: str, folder: Path | None, last: str) -> None:
        """One optimization: outcome first, what is left to do last."""
        self._screen.line(optimize_headline(report, verdict, model), style="bold")
        show_findings(self._screen, verdict.findings)
        self._passes(report.passes)
        self._operators(report)
        self._bytes(report)
        self._levels(report)
        if report.recurrence is not None:
            self._screen.line(recurrence_line(report.recurrence))
        for note in verdict.notes:
            self._screen.line(f"note: {note}")
        for warning in report.warnings:
            self._screen.line(f"warning: {warning}", style="yellow")
        if folder is not None:
            show_artifact(self._screen, report, folder)
        if last:
            self._screen.line(last, style="bold")

    def explain(self, report: Report, model: str) -> None:
        """Every site of every pass, then refusals counted."""
        self._screen.line(explain_headline(report, model), style="bold")
        for record in report.passes:
            counts = f"{counted(record.anchors, 'site')}, {len(record.applied)} applied, {len(record.refused)} refused"
            self._screen.line()
            self._screen.line(f"{record.name} ({record.exactness}): {counts}", style="bold")
            self._screen.marked(_sites(record))
            if record.refused:
                self._screen.line("  refused: " + ", ".join(f"{code} {n}" for code, n in record.refusal_counts.items()))

    def verify(self, verdict: Verdict, reference: str, candidate: str, replay: str = "") -> None:
        """One verdict: findings before figures, the command that replays the worst case last."""
        self._screen.line(verify_headline(verdict, reference, candidate), style="bold")
        show_findings(self._screen, verdict.findings)
        if verdict.figures:
            self._regimes(verdict)
            self._screen.line(f"cases: {', '.join(verdict.cases)}")
        for note in verdict.notes:
            self._screen.line(f"note: {note}")
        if replay:
            self._screen.line(f"the worst case again: {replay}")

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
        self._screen.table(heads, rows, words=2, last_is_words=True)

    def _operators(self, report: Report) -> None:
        before, after = sum(report.census_before.values()), sum(report.census_after.values())
        rows = [[name, str(b), str(a)] for name, b, a in changed_operators(report)]
        self._screen.table(["operators", "before", "after"], [*rows, ["all", str(before), str(after)]], words=1)

    def _bytes(self, report: Report) -> None:
        before, after = report.parameter_bytes
        change = (
            f"before, {after:,} after ({(after - before) / before:+.1%})" if before != after else "before and after"
        )
        self._screen.line()
        self._screen.line(f"stored tensors: {before:,} bytes {change}")
        for name, grown in grown_passes(report):
            self._screen.line(f"  {name} adds {grown:,} bytes: copies of shared weights, new biases")
        if report.census_lowered:
            made = "calls of kernels" if report.target.startswith("tvm") else "ONNX operators"
            self._screen.line(f"lowered to {sum(report.census_lowered.values())} {made}")

    def _regimes(self, verdict: Verdict) -> None:
        rows = sorted(by_output_and_regime(verdict.figures), key=lambda row: -row.ratio)
        shown = rows[:_MOST_ROWS]
        for output in dict.fromkeys(row.output for row in shown):
            lines = [line for row in shown if row.output == output for line in regime_rows(row)]
            heads = [
                printable(output, _MOST_NAME),
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
            self._screen.table(
                [heads[at] for at in kept], [[line[at] for at in kept] for line in lines], words=1, gap=1
            )
        self._screen.line()
        if len(rows) > _MOST_ROWS:
            self._screen.line(
                f"and {counted(len(rows) - _MOST_ROWS, 'row')} with smaller ratios; --json FILE has them all"
            )
        self._screen.line(
            "errors are against the float64 oracle, the worst of all cases of one kind of numbers; SNR in dB"
        )
        self._screen.line("ratio: the candidate's error over what is allowed, at most 1")
        self._screen.line(f"power: a relative change above {verdict.power:.1e} would have been seen in every output")
        if any(row.ignored for row in rows):
            self._screen.line("ignored: elements where the oracle itself is not finite")
        if any(row.undecided for row in rows):
            self._screen.line("undecided: elements that hang on a decision which rounding may turn either way")

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
            self._screen.table(heads, rows, words=2)


def show_findings(screen: Screen, findings: Sequence[Finding]) -> None:
    """What failed, a line each."""
    for finding in findings[:_MOST_FINDINGS]:
        screen.line(f"  {finding.gate} gate, {finding.where}: {finding.message} (case {finding.case})", style="red")
    if len(findings) > _MOST_FINDINGS:
        screen.line(f"  and {len(findings) - _MOST_FINDINGS} more; --json FILE has them all", style="red")


def show_artifact(screen: Screen, report: Report, folder: Path) -> None:
    """Where it lies and what is in it."""
    level = report.runtime.get("level")
    names = ", ".join(sorted(name for name in os.listdir(folder) if not name.startswith(".")))
    screen.line(f"artifact: {folder} ({names}{f'; runs at level {level}' if level else ''})")


def _sites(record: PassRecord) -> Iterator[tuple[str, str, str]]:
    """Rows of the list of sites: what became of one, and where it is."""
    for done in record.applied:
        yield "applied", "green", _lines(done.site, done.module, done.summary, done.source)
    for no in record.refused:
        yield no.code, "yellow", _lines(no.site, no.module, no.message, no.source)


def _lines(site: str, module: str, what: str, source: str) -> str:
    place = f"{module} ({site})" if module else site
    return "\n".join(line for line in (place, what, source) if line)
