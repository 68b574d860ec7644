"""First lines and counts of a result, in words; ``render`` puts them on the screen."""

from collections import Counter

from flowopt.pipeline.text import CANONICALIZE
from flowopt.report.by_regime import RegimeFigures
from flowopt.report.passes import PassRecord
from flowopt.report.recurrence import Recurrence
from flowopt.report.report import Report
from flowopt.report.stored import StoredAdaptation
from flowopt.report.verdict import Metrics, Outcome, Verdict


def optimize_headline(report: Report, verdict: Verdict, model: str) -> str:
    """Outcome and number of rewrites; without any, the most frequent refusal."""
    return (
        f"{_outcome(report, verdict)}: {_rewrites(report, 'applied to')} {model} for {report.target}{_remarks(report)}"
    )


def sampler_headline(report: Report, verdict: Verdict, model: str) -> str:
    """Outcome, and what became one file."""
    assert report.loop is not None, "a sampler has a loop"
    what = f"{counted(report.loop.evaluations, 'evaluation')} of {model} in one file for {report.target}"
    return f"{_outcome(report, verdict)}: {report.loop.sampler}, {what}"


def step_line(report: Report) -> str:
    """What the passes did to the step that is repeated."""
    done = [f"{p.name} {kept_rewrites(p)}" for p in _judged(report) if kept_rewrites(p)]
    return f"{_rewrites(report, 'applied to')} its step{_remarks(report)}" + (f" ({', '.join(done)})" if done else "")


def explain_headline(report: Report, model: str) -> str:
    """The same for a run that only looks."""
    return f"{_rewrites(report, 'possible in')} {model}{_remarks(report)}"


def adaptation_lines(found: StoredAdaptation) -> list[str]:
    """How a stored model was made of another, and how far it is from that one."""
    whose = f", {found.swapped} of {counted(found.norms, 'norm')} replaced" if found.norms else ""
    if found.layers:
        whose = f", {found.linearized} of {counted(found.layers, 'attention')} linearized"
    lines = [f"adapted on {found.data}: {found.method}{whose}; not the function of its original"]
    where = f"on {counted(found.held_out, 'held-out sample')}"
    for one in found.agreement:
        same = "" if one.top1 is None else f", same largest element {one.top1:.2%}"
        figures = f"cosine {one.cosine:.4f}, relative error {one.relative_error:.4f}{same}"
        lines.append(f"{one.output} beside the original's {where}: {figures}")
    before, after = found.metrics
    if before is not None and after is not None:
        lines.append(f"{found.metric} {after:.4f}, the original's {before:.4f}")
    return lines


def _outcome(report: Report, verdict: Verdict) -> str:
    outcome = report.outcome
    if outcome == "dry-run":
        outcome = "dry-run, nothing written"
        if verdict.outcome is not Outcome.NOT_VERIFIED:
            outcome += f", program {verdict.outcome.value}"
    elif verdict.outcome in (Outcome.DIFFERENT, Outcome.INCONCLUSIVE):
        outcome += ", nothing written"
    return outcome


def verify_headline(verdict: Verdict, reference: str, candidate: str) -> str:
    """The outcome, and how small a difference could not have hidden."""
    cases = f"level {verdict.level}, {counted(len(verdict.cases), 'case')}, seed {verdict.seed}"
    relation = {
        Outcome.EQUIVALENT: "computes the same function as",
        Outcome.APPROXIMATE: "stays within its budget of",
        Outcome.DIFFERENT: "does not compute the function of",
    }.get(verdict.outcome, "could not be compared with")
    return f"{verdict.outcome.value}: {candidate} {relation} {reference} ({cases})"


def regime_rows(row: RegimeFigures) -> list[list[str]]:
    """One output under one kind of numbers, as rows of the table of figures: the candidate's, the original's."""
    ends = [f"{row.ratio:.2f}", str(row.ignored), str(row.undecided)]
    name = f"{row.regime} ({row.cases})"
    if row.candidate is None or row.original is None:
        return [[name, *["-"] * 6, *ends]]
    return [[name, *_errors(row.candidate), *ends], ["  original", *_errors(row.original), *[""] * len(ends)]]


def _errors(metrics: Metrics) -> list[str]:
    errors = [f"{error:.1e}" for error in (metrics.max_error, metrics.p99_error, metrics.rms_error)]
    return [*errors, f"{metrics.max_ulp:.2g}", f"{metrics.snr_db:.0f}", f"{max(0.0, 1 - metrics.cosine):.0e}"]


def counted(count: int, noun: str) -> str:
    """``1 site``, ``2 sites``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def kept_rewrites(record: PassRecord) -> int:
    """Sites that a pass changed for good."""
    return len(record.applied) if record.outcome == "kept" else 0


def mostly_refused(record: PassRecord) -> str:
    """The most frequent refusal of a pass with its count, or an empty string."""
    return next((f"{code} {count}" for code, count in record.refusal_counts.items()), "")


def grown_passes(report: Report) -> list[tuple[str, int]]:
    """Passes after which more bytes are stored, as by copies of tied weights."""
    return [(p.name, p.added_bytes) for p in report.passes if p.added_bytes > 0]


def changed_operators(report: Report) -> list[tuple[str, int, int]]:
    """Operators whose number of calls changed: name, before, after."""
    names = sorted({*report.census_before, *report.census_after})
    rows = [(n, report.census_before.get(n, 0), report.census_after.get(n, 0)) for n in names]
    return [row for row in rows if row[1] != row[2]]


def _judged(report: Report) -> list[PassRecord]:
    """Passes whose rewrites count. One that only respells operators for the others is told apart."""
    return [p for p in report.passes if p.name.split(":")[0] != CANONICALIZE]


def _rewrites(report: Report, verb: str) -> str:
    count = sum(kept_rewrites(p) for p in _judged(report))
    return f"{counted(count, 'rewrite')} {verb}"


def _remarks(report: Report) -> str:
    judged = _judged(report)
    remarks = [f"{p.name} reverted ({len(p.applied)})" for p in report.passes if p.outcome == "reverted"]
    if not any(kept_rewrites(p) for p in judged):
        remarks.append(_most_frequent_refusal(judged))
    respelled = sum(kept_rewrites(p) for p in report.passes if p not in judged)
    if respelled:
        remarks.append(f"{counted(respelled, 'operator')} respelled")
    return "".join(f"; {remark}" for remark in remarks)


def _most_frequent_refusal(records: list[PassRecord]) -> str:
    if not records:
        return f"no pass beside {CANONICALIZE} ran"
    sites = sum(p.anchors for p in records)
    if not sites:
        return "no pass found a site"
    codes = Counter(r.code for p in records for r in p.refused)
    if not codes:
        return "none was refused"
    code, count = codes.most_common(1)[0]
    return f"most frequent refusal: {code} ({count} of {counted(sites, 'site')})"


def recurrence_line(found: Recurrence) -> str:
    """What a step carries, and whether it was proved against the model on whole sequences."""
    verdict = (
        "not verified" if found.verdict is None else f"{found.verdict.outcome.value} to the model on whole sequences"
    )
    carried = counted(len(found.states), "tensor")
    return f"a step along {found.sequence!r}: one token in and out, {carried} carried; {verdict}"
