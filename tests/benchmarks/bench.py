"""Build every model of the bench, measure it beside all competitors, print and keep the tables.

    python -m tests.benchmarks.bench [--only 'minilm*'] [--keep] [--seconds 90]

Results lie in ``.bench/bench.json`` and ``.bench/bench.md``, and are written after every cell: ``--keep`` goes on
where a run of the same commit was interrupted.
"""

import argparse
import dataclasses
import shutil
import sys
import time
from fnmatch import fnmatch
from pathlib import Path

import flowopt
from flowopt.errors import FlowoptError, Inconclusive
from flowopt.measuring.competitors import COMPETITORS, require_known
from flowopt.measuring.rounds import Plan
from flowopt.program.program import Program
from flowopt.report.bench import BenchCell
from flowopt.workflows.bench import bench_report
from tests.benchmarks.bench_cells import FOLDER, BenchFile, label, sizes_of
from tests.benchmarks.commit import commit
from tests.benchmarks.models import FACTORIES

_SECONDS = 90.0


def main() -> int:
    """Exit code 1 where a cell has no figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.bench", description="Measure the models.")
    parser.add_argument("--only", default="*", help="pattern of model names, such as 'minilm*'")
    parser.add_argument("--keep", action="store_true", help="go on with the cells and artifacts of this commit")
    parser.add_argument("--seconds", type=float, default=_SECONDS, help="after which a cell ends")
    options = parser.parse_args()
    models = [name for name in FACTORIES if fnmatch(name, options.only)]
    if not models:
        parser.error(f"no model matches {options.only!r}; models: {', '.join(FACTORIES)}")
    try:
        require_known(tuple(COMPETITORS))
    except FlowoptError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    result = run(models, Plan(budget=options.seconds), keep=options.keep)
    print(result.markdown())
    print(f"Kept in {FOLDER.name}/bench.json and {FOLDER.name}/bench.md.")
    return 1 if result.failed else 0


def run(models: list[str], plan: Plan, *, keep: bool, folder: Path = FOLDER) -> BenchFile:
    """Measure some models, one after the other, so that one alone is in memory.

    What is known of other models at the same commit stays.
    """
    result = _started(models, keep=keep, folder=folder)
    known = {cell.label for cell in result.report.cells}
    for at, name in enumerate(models):
        started = time.monotonic()
        missing = [sizes for sizes in sizes_of(name) if label(name, sizes) not in known]
        if missing:
            print(f"[{at + 1}/{len(models)}] {name}", flush=True)
            _measure(name, missing, plan, result, folder, keep=keep)
            print(f"    {name}: {time.monotonic() - started:.0f} s", flush=True)
    result.save(folder)
    return result


def _started(models: list[str], *, keep: bool, folder: Path) -> BenchFile:
    now, last = commit(), BenchFile.load(folder)
    if last is None or last.commit != now:
        return BenchFile(now, bench_report([], 0))
    labels = {label(name, sizes) for name in models for sizes in sizes_of(name)}
    cells = tuple(cell for cell in last.report.cells if keep or cell.label not in labels)
    failed = {name: why for name, why in last.failed.items() if name not in labels}
    return BenchFile(now, dataclasses.replace(last.report, cells=cells), failed)


def _measure(
    name: str, missing: list[dict[str, int]], plan: Plan, result: BenchFile, folder: Path, *, keep: bool
) -> None:
    factory = f"{FACTORIES[name].__module__}:{FACTORIES[name].__name__}"
    own = folder / name
    try:
        program = flowopt.load(factory)
        if not (keep and _commit_of(own) == result.commit):
            shutil.rmtree(own, ignore_errors=True)
            own.mkdir(parents=True)
            _build(program, own / "ours")
            (own / "commit").write_text(result.commit)
    except FlowoptError as error:
        _fail(result, [label(name, sizes) for sizes in missing], error, folder)
        return
    for sizes in missing:
        try:
            report = flowopt.bench(
                [own / "ours"],
                names=[name],
                reference=program,
                factory=factory,
                vs=tuple(COMPETITORS),
                sizes=[sizes],
                plan=plan,
                folder=own / "competitors",
            )
        except FlowoptError as error:
            _fail(result, [label(name, sizes)], error, folder)
            continue
        result.report = dataclasses.replace(report, cells=(*result.report.cells, *report.cells))
        result.save(folder)
        print(f"    {_line(report.cells[0])}", flush=True)


def _fail(result: BenchFile, labels: list[str], error: FlowoptError, folder: Path) -> None:
    why = "; ".join(part for part in (error.message, error.why) if part)
    result.failed |= dict.fromkeys(labels, why)
    result.save(folder)
    print(f"    {', '.join(labels)}: {why}", flush=True)


def _commit_of(folder: Path) -> str:
    path = folder / "commit"
    return path.read_text() if path.exists() else ""


def _build(program: Program, folder: Path) -> None:
    built = flowopt.optimize(program, target="cpu", folder=folder)
    if built.artifact is None:
        raise Inconclusive(f"no artifact: the verdict is {built.verdict.outcome.value}")


def _line(cell: BenchCell) -> str:
    ours = cell.measured[cell.ours]
    ratios = (f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}] of {name}" for name, ratio in cell.ratios.items())
    return f"{cell.label}: {1e3 * ours.median:.3g} ms, {', '.join(ratios)}"


if __name__ == "__main__":
    sys.exit(main())
