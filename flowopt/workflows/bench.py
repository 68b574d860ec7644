"""Bench: artifacts beside eager torch, torch.compile, ONNX Runtime on the plain export, and other people's tools."""

import datetime
import hashlib
import os
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from itertools import chain, count
from pathlib import Path

import torch

from flowopt.analysis.products import products
from flowopt.errors import Inconclusive, MissingDependency, UserError
from flowopt.ir.text import graph_text
from flowopt.measuring.cell import measured_cell
from flowopt.measuring.competitors import COMPETITORS, PLAIN, prepared, require_known
from flowopt.measuring.contender import Contender
from flowopt.measuring.inputs import inputs_of_program, inputs_of_specs
from flowopt.measuring.peaks import measured_peaks
from flowopt.measuring.process import ContenderFailedError
from flowopt.measuring.rounds import Plan
from flowopt.program.loading.trust import Trust
from flowopt.program.program import Program
from flowopt.program.to_exported import to_exported
from flowopt.report.bench import BenchCell, BenchReport
from flowopt.runtime.artifact import Artifact
from flowopt.runtime.layout import TVM_MODEL
from flowopt.runtime.tvm_package import tvm_package
from flowopt.workflows.versions import versions

_LONGEST = 128
_TOOLS = ("transformers", "onnxslim", "onnxsim", "openvino")
_DIGEST = 16


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
    trust: Trust = "data",
    on_cell: Callable[[BenchCell], None] = lambda _: None,
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
        folder: keeps what competitors made, to be used again for the same model; by default it is forgotten.
        names: of the artifacts, in the report; by default their folders'.
        trust: ``code`` for libraries of ``--target tvm``, which are machine code.
        on_cell: gets each cell as soon as it is measured.
        on_progress: gets one line per step.

    Raises:
        UserError: no artifact, competitors without a reference, an unknown dimension, a step beside whole sequences.
        ModelNotFound, MalformedModel: an artifact.
        MissingDependency: a competitor, or the artifact's runtime, is not installed.
        Inconclusive: the first artifact does not run at these sizes.
    """
    wanted = tuple(dict.fromkeys(other for name in vs for other in (PLAIN if name == PLAIN[0] else (name,))))
    if not artifacts:
        raise UserError("there is no artifact to measure", hint="give the folder that flowopt optimize wrote")
    require_known(wanted)
    if wanted and reference is None:
        raise UserError(f"--vs {', '.join(vs)} needs the model itself", hint="give it with --reference MODEL")
    opened = [_opened(path, trust) for path in artifacts]
    _require_alike(artifacts, opened, reference)
    cells = [_checked(at, opened[0].dims) for at in sizes] or [_usual(opened[0].dims)]
    used = threads or _processors()
    labels = list(names) or [Path(path).resolve().name.removesuffix(".flowopt") for path in artifacts]
    ours, *rivals = (
        Contender(name, "artifact", str(path)) for name, path in zip(_own_names(labels), artifacts, strict=True)
    )
    measured: list[BenchCell] = []
    with tempfile.TemporaryDirectory(prefix="flowopt-bench-") as scratch:
        kept = Path(folder) if folder is not None else Path(scratch)
        on_progress("preparing competitors")
        others, failures = _prepared(wanted, reference, factory, kept)
        for at in cells:
            where = " ".join([labels[0], *(f"{name}={size}" for name, size in at.items())])
            inputs = inputs_of_specs(opened[0].inputs, at) if reference is None else inputs_of_program(reference, at)
            failed = dict(failures)
            peaks = None
            if reference is not None:
                on_progress(f"{where}: measuring peaks")
                try:
                    peaks = measured_peaks(products(reference, at), used)
                except ContenderFailedError as error:
                    failed["peaks"] = str(error)
            try:
                cell = measured_cell(
                    labels[0],
                    at,
                    ours,
                    [*rivals, *others],
                    inputs,
                    threads=used,
                    plan=plan or Plan(),
                    failures=failed,
                    peaks=peaks,
                    on_progress=lambda step, where=where: on_progress(f"{where}: {step}"),  # type: ignore[misc]
                )
            except ContenderFailedError as error:
                raise Inconclusive(
                    f"{artifacts[0]} does not run at {where}",
                    why=str(error),
                    hint="other sizes with --at NAME=SIZE,..., or flowopt verify MODEL ARTIFACT, which says more",
                ) from error
            measured.append(cell)
            on_cell(cell)
    return bench_report(measured, used)


def bench_report(cells: Sequence[BenchCell], threads: int) -> BenchReport:
    """Cells with where and when they were measured."""
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    return BenchReport(tuple(cells), _processor(), threads, today, versions(_TOOLS))


def _opened(path: str | Path, trust: Trust) -> Artifact:
    artifact = Artifact.open(path, trust=trust)
    if artifact.model_path.name == TVM_MODEL:
        tvm_package()
    if artifact.model_path.suffix == ".onnx" and find_spec("onnxruntime") is None:
        raise MissingDependency(f"{path} runs in onnxruntime", hint='pip install "flowopt[bench,cpu]"')
    return artifact


def _require_alike(paths: Sequence[str | Path], opened: Sequence[Artifact], reference: Program | None) -> None:
    """All contenders get the same inputs: one token, or whole sequences."""
    steps = [path for path, artifact in zip(paths, opened, strict=True) if artifact.recurrence is not None]
    if steps and reference is not None:
        raise UserError(
            f"{steps[0]} is a step, which takes one token, and the reference takes whole sequences",
            hint=f"flowopt bench {steps[0]} measures the step alone",
        )
    if steps and len(steps) < len(opened):
        raise UserError(
            f"{steps[0]} is a step, which takes one token, and other artifacts take whole sequences",
            hint=f"flowopt bench {' '.join(map(str, steps))} measures steps alone",
        )


def _own_names(labels: Sequence[str]) -> list[str]:
    """``flowopt``, and those of rivals: no two contenders share one."""
    names = ["flowopt"]
    for label in labels[1:]:
        taken = {*names, *COMPETITORS}
        name = next(n for n in chain([label], (f"{label}-{at}" for at in count(2))) if n not in taken)
        names.append(name)
    return names


def _prepared(
    wanted: tuple[str, ...], reference: Program | None, factory: str | None, folder: Path
) -> tuple[list[Contender], dict[str, str]]:
    """Competitors, made of the factory, or of an archive of the captured program."""
    if not wanted:
        return [], {}
    assert reference is not None, "competitors were refused without it"
    # What another model's competitors left in the folder has another name.
    own = folder / _digest(reference, factory)
    own.mkdir(parents=True, exist_ok=True)
    if factory is not None:
        return prepared(wanted, factory, own)
    path = own / "reference.pt2"
    if not path.exists():
        aside = own / f"{os.getpid()}.pt2"
        torch.export.save(to_exported(reference), aside)
        aside.rename(path)
    return prepared(wanted, str(path), own)


def _digest(program: Program, factory: str | None) -> str:
    """Of all that a competitor is made of: model, way, and versions of the tools."""
    text = f"{factory} {graph_text(program.graph)} {program.dims} {versions(_TOOLS)}"
    found = hashlib.sha256(text.encode())
    for name, tensor in program.tensors.items():
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()[:_DIGEST]


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


def _processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    """The processor's model name, as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
