"""Measure one cell: scout all contenders, then ours against the best of them in a run of its own."""

import contextlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowopt.measuring.contender import Contender
from flowopt.measuring.process import ContenderFailedError, Worker
from flowopt.measuring.rounds import Plan, alternated, until_sure
from flowopt.measuring.statistics import ratio, timing
from flowopt.report.bench import BenchCell, Peaks, Timing

_SCOUT_ROUNDS = 3


def measured_cell(
    model: str,
    sizes: Mapping[str, int],
    ours: Contender,
    others: Sequence[Contender],
    inputs: Mapping[str, Tensor],
    *,
    threads: int,
    plan: Plan,
    failures: Mapping[str, str],
    peaks: Peaks | None,
    on_progress: Callable[[str], None] = lambda _: None,
) -> BenchCell:
    """One model at one set of sizes.

    The first run has every contender and chooses; the second has ours, the fastest plain export and the fastest of
    all, and measures. A choice among noisy figures is lucky for who is chosen: its figure there does not count.

    Args:
        model: its name in the report.
        sizes: of every free dimension.
        ours: what the ratios are of.
        others: competitors.
        inputs: by name, in the order of the program.
        threads: of every contender.
        plan: how long the second run takes.
        failures: of competitors that could not be made.
        peaks: measured beforehand.
        on_progress: gets one line per step.

    Raises:
        ContenderFailedError: ours cannot run.
    """
    failed = dict(failures)
    with tempfile.TemporaryDirectory(prefix="flowopt-bench-") as folder, ExitStack() as stack:
        path = Path(folder) / "inputs.safetensors"
        save_file({name: tensor.contiguous().clone() for name, tensor in inputs.items()}, path)
        workers: dict[str, Worker] = {}
        # All start at once: loading is most of a cell's time, and nothing is measured yet.
        started = [stack.enter_context(Worker(one, path, tuple(inputs), threads)) for one in (ours, *others)]
        for worker in started:
            name = worker.contender.name
            on_progress(f"opening {name}")
            try:
                worker.wait_ready()
            except ContenderFailedError as error:
                if worker.contender is ours:
                    raise
                failed[name] = str(error)
            else:
                workers[name] = worker
        differences = _differences(workers, ours.name)
        on_progress("scouting")
        bursts = alternated(workers, _SCOUT_ROUNDS, plan.burst, failed)
        _require(ours, failed)
        scouted = {name: timing(b) for name, b in bursts.items()}
        plain = _fastest(scouted, [c.name for c in others if c.is_plain])
        best = _fastest(scouted, [c.name for c in others])
        chosen = [name for name in dict.fromkeys((plain, best)) if name is not None]
        for name in [name for name in workers if name not in (ours.name, *chosen)]:
            workers.pop(name).close()
        bursts = until_sure(
            workers, ours.name, chosen, plan, failed, lambda number: on_progress(f"measuring, round {number + 1}")
        )
        _require(ours, failed)
    ratios = {name: ratio(bursts[ours.name], bursts[name]) for name in chosen if name in bursts}
    measured = {name: timing(found) for name, found in bursts.items()}
    # Who ended while the ratio was measured keeps the figure of the first run, and has no ratio.
    plain, best = (name if name in ratios else None for name in (plain, best))
    return BenchCell(model, dict(sizes), ours.name, scouted, measured, ratios, plain, best, failed, differences, peaks)


def _require(ours: Contender, failed: Mapping[str, str]) -> None:
    if ours.name in failed:
        raise ContenderFailedError(failed[ours.name])


def _fastest(scouted: Mapping[str, Timing], names: Sequence[str]) -> str | None:
    return min((name for name in names if name in scouted), key=lambda name: scouted[name].median, default=None)


def _differences(workers: Mapping[str, Worker], ours: str) -> dict[str, float]:
    """How far each contender's outputs are from ours: a runtime that computes something else is not faster."""
    wanted = load_file(workers[ours].outputs)
    found: dict[str, float] = {}
    for name, worker in workers.items():
        if name == ours:
            continue
        other = load_file(worker.outputs)
        with contextlib.suppress(KeyError, RuntimeError):
            found[name] = max((_difference(tensor, other[key]) for key, tensor in wanted.items()), default=0.0)
    return found


def _difference(ours: Tensor, theirs: Tensor) -> float:
    a, b = ours.to(torch.float64), theirs.to(torch.float64)
    scale = float(a.abs().max()) if a.numel() else 0.0
    return float((a - b).abs().max()) / scale if scale else float((a - b).abs().sum())
