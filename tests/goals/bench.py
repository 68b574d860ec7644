"""Rows of the bench: no model is slower than its plain export, short transformers are faster, and passes scale."""

import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from flowopt.report.bench import BenchCell
from flowopt.workflows.bench import bench_report
from tests.benchmarks.bench_cells import ALL_LABELS, SHORT_LABELS, BenchFile
from tests.benchmarks.commit import ROOT, commit
from tests.goals.row import Measured, Row

_WIDTH, _SLOWER = 0.06, 1.03
_SHORT = 0.90
_DEPTHS, _EXPONENT = (2, 6, 12, 24, 48), 1.15
_TWICE = 12


def _bench() -> BenchFile:
    """The last bench where it is of this commit, else a new one."""
    last = BenchFile.load()
    if last is not None and last.commit == commit() and last.is_whole:
        return last
    command = [sys.executable, "-m", "tests.benchmarks.bench", "--keep"]
    subprocess.run(command, cwd=ROOT, stdout=sys.stderr, check=False)
    return BenchFile.load() or BenchFile(commit(), bench_report([], 0))


def _table() -> Measured:
    return table_of(_bench())


def table_of(bench: BenchFile) -> Measured:
    """The row out of a bench."""
    cells = {cell.label: cell for cell in bench.report.cells}
    short = {
        name: _shortcoming(cells[name]) if name in cells else bench.failed.get(name, "not measured")
        for name in ALL_LABELS
    }
    good = sum(not problem for problem in short.values())
    faster = sum(cell.ratios[cell.plain].high < 1 for cell in cells.values() if cell.plain is not None)
    value = f"{good} of {len(ALL_LABELS)} cells, {faster} surely faster"
    return Measured(value, good == len(ALL_LABELS), tuple(f"{n}: {problem}" for n, problem in short.items() if problem))


def _shortcoming(cell: BenchCell) -> str:
    if cell.plain is None:
        return f"no plain export ran: {'; '.join(cell.failures.values())}"
    ratio = cell.ratios[cell.plain]
    shown = f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}] of {cell.plain}"
    if ratio.low > _SLOWER:
        return f"slower: {shown}"
    return f"not sure enough: {shown}" if ratio.width > _WIDTH else ""


def _short() -> Measured:
    return short_of(_bench())


def short_of(bench: BenchFile) -> Measured:
    """The row out of a bench."""
    cells = {cell.label: cell for cell in bench.report.cells}
    ratios = {n: cells[n].ratios[cells[n].plain or ""].value for n in SHORT_LABELS if n in cells and cells[n].plain}
    mean = bench.ratio_of_short()
    details = tuple(f"{name}: {ratios[name]:.3f}" if name in ratios else f"{name}: -" for name in SHORT_LABELS)
    if mean is None:
        return Measured(f"{len(ratios)} of {len(SHORT_LABELS)} cells", False, details)
    return Measured(f"geometric mean {mean:.3f} of the plain export", mean <= _SHORT, details if mean > _SHORT else ())


def _scaling() -> Measured:
    # Short runs vary most.
    seconds = {d: statistics.median(_seconds_of(d) for _ in range(2 if d <= _TWICE else 1)) for d in _DEPTHS}
    exponent = fitted_exponent(seconds)
    details = (", ".join(f"{depth} layers {found:.1f} s" for depth, found in seconds.items()),)
    return Measured(f"exponent {exponent:.2f}", exponent <= _EXPONENT, details)


def fitted_exponent(seconds: dict[int, float]) -> float:
    """Slope of the line of least squares through the logarithms."""
    fit = statistics.linear_regression([math.log(depth) for depth in seconds], list(map(math.log, seconds.values())))
    return fit.slope


def _seconds_of(depth: int) -> float:
    command = [sys.executable, "-m", "tests.goals.bench", str(depth)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def main(depth: int) -> None:
    """Print the seconds of one ``optimize``, everything in it: capture is done before."""
    import flowopt
    from tests.benchmarks.models import narrow_gpt2_of_depth

    program = flowopt.capture(**narrow_gpt2_of_depth(depth))
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        result = flowopt.optimize(program, target="cpu", folder=Path(folder) / "out")
        seconds = time.perf_counter() - started
    assert result.artifact is not None
    print(json.dumps(seconds))


ROWS = (
    Row("bench.table", f"every cell within {_WIDTH}, none surely above {_SLOWER}", _table, is_long=True),
    Row("bench.short", f"short transformers at most {_SHORT:.2f}", _short, is_long=True),
    Row("bench.scaling", f"seconds over layers: exponent at most {_EXPONENT}", _scaling, is_long=True),
)

if __name__ == "__main__":
    main(int(sys.argv[1]))
