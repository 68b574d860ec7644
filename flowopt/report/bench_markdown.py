"""A bench as a Markdown table."""

from collections.abc import Mapping

from flowopt.report.bench import BenchCell, BenchReport, Peaks, Ratio, Timing

_HEAD = (
    "| model | ms (quartiles) | ONNX Runtime, plain export | ratio [95 %] | fastest other | ratio [95 %] "
    "| GFLOP/s of peak | GB/s of peak |"
)

_ROUNDING = 1e-3


def bench_markdown(report: BenchReport, titles: Mapping[str, str] | None = None) -> str:
    """The table, what its columns mean, and every competitor's time below it.

    Args:
        report: what to show.
        titles: of groups, by model: each group is a table of its own; by default there is one without a title.
    """
    groups: dict[str, list[BenchCell]] = {}
    for cell in report.cells:
        groups.setdefault((titles or {}).get(cell.model, ""), []).append(cell)
    lines = [
        f"{report.processor}, {report.threads} threads, {report.date}; "
        + ", ".join(f"{name} {version}" for name, version in report.versions.items()),
    ]
    for title, cells in groups.items():
        lines += ["", *([f"**{title}**", ""] if title else []), _HEAD, "|" + "---|" * (_HEAD.count("|") - 1)]
        lines += [_row(cell) for cell in cells]
    lines += [
        "",
        "A ratio is our time over the other's: below 1 we are faster.",
        "The peak beside GFLOP/s is that of the model's own products alone, each by the faster of torch and ONNX "
        "Runtime; that beside GB/s is of a large copy.",
        "",
        "Every contender in milliseconds:",
        "",
        *_all_contenders(report),
    ]
    others = [
        f"- {cell.label}: {name}: {difference:.0e}"
        for cell in report.cells
        for name, difference in cell.differences.items()
        if difference > _ROUNDING
    ]
    if others:
        lines += ["", "Outputs that differ from ours by more than rounding, over the largest one:", "", *others]
    failures = [f"- {cell.label}: {name}: {why}" for cell in report.cells for name, why in cell.failures.items()]
    if failures:
        lines += ["", "Without a figure:", "", *failures]
    return "\n".join(lines) + "\n"


def _row(cell: BenchCell) -> str:
    ours = cell.measured.get(cell.ours)
    plain, best = cell.plain, cell.best
    columns = [
        cell.label,
        "-" if ours is None else _time(ours),
        "-" if plain is None else f"{plain} {_milliseconds(cell.measured[plain].median)}",
        "-" if plain is None else _ratio(cell.ratios[plain]),
        "-" if best is None else f"{best} {_milliseconds(cell.measured[best].median)}",
        "-" if best is None else _ratio(cell.ratios[best]),
        *_rates(ours, cell.peaks),
    ]
    return f"| {' | '.join(columns)} |"


def _rates(ours: Timing | None, peaks: Peaks | None) -> tuple[str, str]:
    if ours is None or peaks is None:
        return "-", "-"
    flop, moved = peaks.flop / ours.median, peaks.moved_bytes / ours.median
    return (
        f"{flop / 1e9:.0f} of {peaks.flop_per_second / 1e9:.0f}",
        f"{moved / 1e9:.1f} of {peaks.bytes_per_second / 1e9:.1f}",
    )


def _all_contenders(report: BenchReport) -> list[str]:
    names = list(dict.fromkeys(name for cell in report.cells for name in cell.scouted))
    rows = [
        f"| {cell.label} | "
        + " | ".join(_milliseconds(cell.scouted[name].median) if name in cell.scouted else "-" for name in names)
        + " |"
        for cell in report.cells
    ]
    return [f"| model | {' | '.join(names)} |", "|" + "---|" * (len(names) + 1), *rows]


def _time(timing: Timing) -> str:
    return f"{_milliseconds(timing.median)} ({_milliseconds(timing.low)} to {_milliseconds(timing.high)})"


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}" if seconds < 1 else f"{1e3 * seconds:.0f}"


def _ratio(ratio: Ratio) -> str:
    return f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"
