"""Exit codes of results; those of errors are in ``flowopt.cli.failure``."""

from flowopt.report.adaptation import Adaptation
from flowopt.report.report import Report
from flowopt.report.verdict import Outcome, Verdict

# Outcomes of a target whose device took no part.
WITHOUT_DEVICE = ("verified-on-cpu", "compiled-not-run")
EXIT_DIFFERENT = 1
EXIT_OVER_BUDGET = 1
EXIT_INCONCLUSIVE = 3


def verdict_code(verdict: Verdict) -> int:
    """0 when the numbers can be trusted or nobody asked, 1 different, 3 inconclusive."""
    if verdict.outcome is Outcome.DIFFERENT:
        return EXIT_DIFFERENT
    return EXIT_INCONCLUSIVE if verdict.outcome is Outcome.INCONCLUSIVE else 0


def optimize_code(report: Report, verdict: Verdict, *, strict: bool, require_device: bool) -> int:
    """The verdict's code; else 1 for a reverted pass under ``--strict``, 3 where the device did not take part."""
    code = verdict_code(verdict)
    if code:
        return code
    if strict and any(p.outcome == "reverted" for p in report.passes):
        return EXIT_DIFFERENT
    return EXIT_INCONCLUSIVE if require_device and report.outcome in WITHOUT_DEVICE else 0


def adapt_code(adaptation: Adaptation, report: Report | None) -> int:
    """1 beyond the budget or where the lowered file differs from the adapted model, 3 where that is open, else 0."""
    if adaptation.broken:
        return EXIT_OVER_BUDGET
    outcome = "" if report is None else report.outcome
    return {Outcome.DIFFERENT.value: EXIT_DIFFERENT, Outcome.INCONCLUSIVE.value: EXIT_INCONCLUSIVE}.get(outcome, 0)
