"""Rows of the TVM target: the zoo in its libraries, their speed, what they need, and CUDA without a GPU."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flowopt
from flowopt.errors import FlowoptError
from flowopt.lowering.staging import Staging
from flowopt.lowering.tvm.lower import Compilation, lower_to_tvm
from flowopt.measuring.rounds import Plan
from flowopt.report.bench import BenchCell
from flowopt.runtime.layout import TVM_MODEL
from flowopt.runtime.tvm_package import cuda_device_available
from flowopt.workflows.pipelines import Pipeline
from tests.benchmarks import models
from tests.goals.norms import program_of
from tests.goals.row import Measured, Row, counted
from tests.zoo.architectures import ARCHITECTURES

FEWEST_EQUIVALENT = 30
SLOWEST = 0.35
MOST_SECONDS = 60.0
ARCH = "sm_90"
SPEED: Mapping[str, tuple[Callable[[], dict[str, Any]], dict[str, int]]] = {
    "MiniLM 1x128": (models.minilm, {"batch": 1, "sequence": 128}),
    "ViT-S": (models.vit_long, {"batch": 1}),
    "GPT-2 small 1x128": (models.gpt2, {"batch": 1, "sequence": 128}),
    "ResNet-18": (models.resnet_long, {"batch": 1}),
}
_PLAN = Plan(budget=60.0, width=0.06)
_FOREIGN = ("blas", "gemm", "dnnl", "mkl", "cudnn", "nnpack")
_BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "onnxruntime"):
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
import numpy as np
from flowopt.runtime.relax_library import RelaxLibrary
ids = np.ones((2, 7), dtype=np.int64)
outputs = RelaxLibrary.open(sys.argv[1]).run({"input_ids": ids, "attention_mask": ids})
assert all(np.isfinite(value).all() for value in outputs.values())
"""


def outcome_on_tvm(name: str) -> str:
    """Empty where an architecture's library is equivalent, else what happened."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            result = flowopt.optimize(program_of(name), target="tvm", folder=Path(folder) / "out")
    except FlowoptError as error:
        return f"refused: {error.message}"
    if result.report.warnings:
        return f"with a warning: {result.report.warnings[0]}"
    return "" if result.verdict.outcome == "equivalent" else f"{result.verdict.outcome.value}: {result.verdict.reason}"


def _zoo() -> Measured:
    outcomes = {name: outcome_on_tvm(name) for name in ARCHITECTURES}
    good, short = counted(outcomes)
    refused = sum(outcome.startswith("refused: TVM has no form of") for outcome in outcomes.values())
    is_met = good >= FEWEST_EQUIVALENT and good + refused == len(outcomes)
    return Measured(f"{good} of {len(outcomes)} equivalent, {refused} refused", is_met, short)


def cell_of(name: str) -> BenchCell:
    """A model's library beside its ONNX artifact in ONNX Runtime, both verified."""
    factory, sizes = SPEED[name]
    program = flowopt.capture(**factory())
    with tempfile.TemporaryDirectory() as scratch:
        folders = {target: Path(scratch) / target for target in ("tvm", "cpu")}
        for target, folder in folders.items():
            # The row of the zoo is about numbers; the bench compares these outputs too.
            flowopt.optimize(program, target=target, folder=folder, verify="off")
        report = flowopt.bench(
            [folders["tvm"], folders["cpu"]],
            reference=program,
            sizes=[sizes],
            plan=_PLAN,
            trust="code",
            names=[name, "onnxruntime"],
        )
    return report.cells[0]


def _speed() -> Measured:
    lines: list[str] = []
    speeds: list[float] = []
    for name in SPEED:
        cell = cell_of(name)
        ratio = cell.ratios["onnxruntime"]
        ours, theirs = cell.measured[cell.ours], cell.measured["onnxruntime"]
        speeds.append(1 / ratio.high)
        peaks = cell.peaks
        assert peaks is not None, "the bench has the model itself"
        lines.append(
            f"{name}: {1 / ratio.value:.2f}x [{1 / ratio.high:.2f}, {1 / ratio.low:.2f}], "
            f"{1e3 * ours.median:.1f} ms, onnxruntime {1e3 * theirs.median:.1f} ms, "
            f"{peaks.flop / ours.median / 1e9:.0f} GFLOP/s of {peaks.flop_per_second / 1e9:.0f}, "
            f"outputs differ by {cell.differences['onnxruntime']:.0e}"
        )
    value = f"at least {min(speeds):.2f}x of ONNX Runtime"
    return Measured(value, min(speeds) >= SLOWEST, tuple(lines))


def _compile() -> Measured:
    program = Pipeline("exact").run(flowopt.capture(**models.minilm()), verify="off").program
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "out"
        start = time.perf_counter()
        with Staging(folder) as staging:
            lowered = lower_to_tvm(program, staging, Compilation())
            seconds = time.perf_counter() - start
            staging.commit(lowered.model, TVM_MODEL, '{"target": "tvm"}')
        ran = subprocess.run([sys.executable, "-c", _BLOCKED, str(folder)], capture_output=True, text=True, check=False)
        listed = subprocess.run(
            ["nm", "-D", "--undefined-only", str(folder / TVM_MODEL)], capture_output=True, text=True, check=True
        )
        size = (folder / TVM_MODEL).stat().st_size
    foreign = [line for line in listed.stdout.lower().splitlines() if any(word in line for word in _FOREIGN)]
    short: tuple[str, ...] = (ran.stderr.strip().splitlines()[-1],) if ran.returncode else ()
    short += tuple(foreign)
    needs = "runs without torch and onnxruntime" if not ran.returncode else "does not run without torch"
    value = f"{seconds:.0f} s, {needs}, {len(foreign)} foreign symbols, library {size / 1e6:.1f} MB"
    return Measured(value, seconds <= MOST_SECONDS and not short, short)


def compiled_for_cuda(name: str) -> str:
    """Empty where an architecture compiles for CUDA (and, where there is a GPU, agrees on it), else what happened."""
    try:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "out"
            if cuda_device_available():
                result = flowopt.optimize(program_of(name), target="tvm-cuda", arch=ARCH, folder=folder)
                return (
                    "" if result.report.outcome == "verified" else f"{result.report.outcome}: {result.verdict.reason}"
                )
            program = Pipeline("exact").run(program_of(name), verify="off").program
            with Staging(folder) as staging:
                lower_to_tvm(program, staging, Compilation("cuda", ARCH))
    except FlowoptError as error:
        return f"{error.message}: {error.why}"
    return ""


def _cuda() -> Measured:
    good, short = counted({name: compiled_for_cuda(name) for name in ARCHITECTURES})
    has_device = cuda_device_available()
    what = "verified on this GPU" if has_device else f"compiled for {ARCH}, run: not run"
    is_met = False if short else (True if has_device else None)
    return Measured(f"{good} of {len(ARCHITECTURES)} {what}", is_met, short)


ROWS = (
    Row("tvm.zoo", f"at least {FEWEST_EQUIVALENT} equivalent, the others refused by name", _zoo, is_long=True),
    Row("tvm.speed", f"at least {SLOWEST}x of ONNX Runtime on 4 models", _speed, is_long=True),
    Row("tvm.compile", f"MiniLM within {MOST_SECONDS:.0f} s, needs no torch, calls no BLAS", _compile, is_long=True),
    Row("tvm.cuda", f"the zoo compiles for {ARCH} without a GPU; runs where there is one", _cuda, is_long=True),
)
