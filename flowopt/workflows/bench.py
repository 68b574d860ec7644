"""Bench: artifacts beside eager torch, torch.compile, ONNX Runtime on the plain export, and other people's tools."""

import datetime
import os
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from flowopt.analysis.products import products
from flowopt.errors import UserError
from flowopt.measuring.cell import measured_cell
from flowopt.measuring.competitors import PLAIN, prepared, require_known
from flowopt.measuring.contender import Contender
from flowopt.measuring.inputs import inputs_of_program, inputs_of_specs
from flowopt.measuring.peaks import measured_peaks
from flowopt.measuring.rounds import Plan
from flowopt.program.program import Program
from flowopt.program.to_exported import to_exported
from flowopt.report.bench import BenchCell, BenchReport
from flowopt.runtime.artifact import Artifact
from flowopt.workflows.versions import versions

_LONGEST = 128


def bench(
    artifacts: Sequence[str | Path],
    *,
    reference: Program | None = None,
    factory: str | None = None,
    vs: Sequence[str] = (),
    sizes: Sequence[Mapping[str, int]] = (),
    threads: int | None = None,
    plan: Plan | None = None,
    folder: str | Path | None = None,
    names: Sequence[str] = (),
    on_progress: Callable[[str], None] = lambda _: None,
) -> BenchReport:
    """Time artifacts beside each other and beside what others make of the same model.

    Every contender runs in a process of its own; they take turns. A first run of all chooses the fastest plain export
    and the fastest competitor, a second one measures the ratio to them, until its 95 % interval is narrow enough.

    Args:
        artifacts: folders that ``optimize`` wrote. The ratios are of the first; the others are competitors.
        reference: the model that they were made of. It gives real ids, peaks, and competitors something to start from.
        factory: ``package.module:factory`` of the reference; eager torch and its exporter then get the module itself.
        vs: competitors, of ``flowopt.measuring.competitors.COMPETITORS``; ``ort`` is measured at two opsets.
        sizes: the cells: each a size per free dimension; by default one, with batches of 1 and 128 of everything else.
        threads: of every contender; by default one per processor that this process may use.
        plan: how long to measure.
        folder: keeps what competitors made, to be used again; by default it is forgotten.
        names: of the artifacts, in the report; by default their folders'.
        on_progress: gets one line per step.

    Raises:
        UserError: no artifact, competitors without a reference, an unknown dimension.
        MissingDependency: a competitor is not installed.
        ContenderFailedError: the first artifact does not run at these sizes.
    """
    wanted = tuple(dict.fromkeys(other for name in vs for other in (PLAIN if name == PLAIN[0] else (name,))))
    if not artifacts:
        raise UserError("there is no artifact to measure", hint="give the folder that flowopt optimize wrote")
    require_known(wanted)
    if wanted and reference is None:
        raise UserError(f"--vs {', '.join(vs)} needs the model itself", hint="give it with --reference MODEL")
    opened = [Artifact.open(path) for path in artifacts]
    cells = [_checked(at, opened[0].dims) for at in sizes] or [_usual(opened[0].dims)]
    count = threads or len(os.sched_getaffinity(0))
    labels = list(names) or [Path(path).name.removesuffix(".flowopt") for path in artifacts]
    ours, *rivals = (Contender(_own_name(labels, at), "artifact", str(path)) for at, path in enumerate(artifacts))
    measured: list[BenchCell] = []
    with tempfile.TemporaryDirectory(prefix="flowopt-bench-") as scratch:
        kept = Path(folder) if folder is not None else Path(scratch)
        on_progress("preparing competitors")
        source = _source(reference, factory, kept) if wanted else ""
        others, failures = prepared(wanted, source, kept) if wanted else ([], {})
        for at in cells:
            inputs = inputs_of_specs(opened[0].inputs, at) if reference is None else inputs_of_program(reference, at)
            on_progress("measuring peaks")
            peaks = None if reference is None else measured_peaks(products(reference, at), count)
            where = " ".join([labels[0], *(f"{name}={size}" for name, size in at.items())])
            measured.append(
                measured_cell(
                    labels[0],
                    at,
                    ours,
                    [*rivals, *others],
                    inputs,
                    threads=count,
                    plan=plan or Plan(),
                    failures=failures,
                    peaks=peaks,
                    on_progress=lambda step, where=where: on_progress(f"{where}: {step}"),  # type: ignore[misc]
                )
            )
    return bench_report(measured, count)


def bench_report(cells: Sequence[BenchCell], threads: int) -> BenchReport:
    """Cells with where and when they were measured."""
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    return BenchReport(tuple(cells), _processor(), threads, today, versions())


def _own_name(labels: Sequence[str], at: int) -> str:
    return "flowopt" if at == 0 else labels[at]


def _source(reference: Program | None, factory: str | None, folder: Path) -> str:
    """What competitors start from: the factory, or an archive of the captured program."""
    if factory is not None:
        return factory
    assert reference is not None, "competitors were refused without it"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "reference.pt2"
    if not path.exists():
        torch.export.save(to_exported(reference), path)
    return str(path)


def _usual(dims: Mapping[str, tuple[int, int | None]]) -> dict[str, int]:
    """A batch of 1, 128 of everything else, as far as the ranges allow."""
    usual: dict[str, int] = {}
    for name, (low, high) in dims.items():
        wanted = 1 if "batch" in name else _LONGEST
        usual[name] = max(low, min(wanted, high if high is not None else wanted))
    return usual


def _checked(at: Mapping[str, int], dims: Mapping[str, tuple[int, int | None]]) -> dict[str, int]:
    unknown = sorted(at.keys() - dims.keys())
    if unknown:
        raise UserError(f"there is no free dimension {unknown[0]!r}", hint=f"the model has {', '.join(dims) or 'none'}")
    for name, size in at.items():
        low, high = dims[name]
        if size < low or (high is not None and size > high):
            raise UserError(f"{name}={size} is outside of its range {low} to {high if high is not None else 'any'}")
    return _usual(dims) | dict(at)


def _processor() -> str:
    """The processor's model name, as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
