"""A bench on the screen: one table per cell."""

from flowopt.cli.render import Screen
from flowopt.report.bench import BenchCell, BenchReport, Timing
from flowopt.workflows.tuned import Tuned

_HEADS = ("contender", "ms", "quartiles", "ratio", "95 %", "differs by")


def render_bench(report: BenchReport) -> None:
    """Every contender's time by cell, fastest first, and the ratio to those that were measured against."""
    screen = Screen()
    screen.line(f"{report.processor}, {report.threads} threads")
    for cell in report.cells:
        screen.line()
        screen.line(cell.label, style="bold")
        screen.table(_HEADS, [_row(cell, name) for name in _by_time(cell)], words=1, gap=2)
        _rates(screen, cell)
        for name, why in cell.failures.items():
            screen.line(f"{name} has no figure: {why}", style="yellow")
    screen.line()
    screen.prose(
        "ratio: the first artifact's time over the contender's, in a run of these alone; below 1 the artifact is "
        "faster. Times without a ratio are of a shorter run that chose. differs by: of outputs, over the largest one."
    )


def render_tuned(tuned: Tuned, path: str) -> None:
    """What was chosen, and how to use it."""
    screen = Screen()
    chosen = sum(choice.merge for choice in tuned.merges)
    screen.line(f"{len(tuned.merges)} choices measured, {chosen} groups of linear layers are to be merged: {path}")
    screen.line(f"use them: flowopt optimize MODEL --tuned {path}")


def _by_time(cell: BenchCell) -> list[str]:
    return sorted(cell.scouted, key=lambda name: _timing(cell, name).median)


def _timing(cell: BenchCell, name: str) -> Timing:
    return cell.measured.get(name, cell.scouted[name])


def _row(cell: BenchCell, name: str) -> list[str]:
    timing, ratio = _timing(cell, name), cell.ratios.get(name)
    differs = cell.differences.get(name)
    return [
        name,
        _milliseconds(timing.median),
        f"{_milliseconds(timing.low)} to {_milliseconds(timing.high)}",
        "" if ratio is None else f"{ratio.value:.3f}",
        "" if ratio is None else f"{ratio.low:.3f} to {ratio.high:.3f}",
        "" if differs is None else f"{differs:.0e}",
    ]


def _rates(screen: Screen, cell: BenchCell) -> None:
    ours = cell.measured.get(cell.ours)
    if ours is None or cell.peaks is None:
        return
    flop, moved = cell.peaks.flop / ours.median, cell.peaks.moved_bytes / ours.median
    screen.line(f"{flop / 1e9:.1f} GFLOP/s; torch gives these products alone {cell.peaks.flop_per_second / 1e9:.1f}")
    screen.line(f"{moved / 1e9:.1f} GB/s of their operands; a large copy gets {cell.peaks.bytes_per_second / 1e9:.1f}")


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}" if seconds < 1 else f"{1e3 * seconds:.0f}"
