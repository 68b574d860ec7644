"""What ``optimize`` of the trained MiniLM costs, against loading it, exporting it plainly and opening a session.

    python -m tests.benchmarks.minilm_cost bare|optimize      one run: seconds, and bytes above the imports

Runs alternate, each in a process of its own; both count from after the imports to the end.
"""

import contextlib
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Cost:
    """Medians: time of optimize over bare time, its spread, and peak memory above imports over the model's bytes."""

    times: float
    spread: str
    memory: float


def measured_cost() -> Cost:
    """Alternated runs in separate processes."""
    ratios: list[float] = []
    memories: list[float] = []
    for _ in range(_ROUNDS):
        bare, ours = _run("bare"), _run("optimize")
        ratios.append(ours["seconds"] / bare["seconds"])
        memories.append(ours["peak_bytes"] / ours["model_bytes"])
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    return Cost(statistics.median(ratios), spread, statistics.median(memories))


def _run(mode: str) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.benchmarks.minilm_cost", mode]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def _bare(folder: Path) -> int:
    import onnxruntime
    import torch

    from tests.zoo.models import ZOO

    model = ZOO["minilm"]()
    dims = {name: torch.export.Dim(name, min=low, max=high) for name, (low, high) in model.dims.items()}
    shapes = {name: {axis: dims[dim] for axis, dim in axes.items()} for name, axes in model.dynamic.items()}
    exported = torch.export.export(model.module, (), dict(model.kwargs), dynamic_shapes=shapes, strict=False)
    program = torch.onnx.export(exported, dynamo=True, opset_version=23, verbose=False)
    assert program is not None
    program.save(folder / "model.onnx", external_data=True)
    onnxruntime.InferenceSession(str(folder / "model.onnx"))
    return sum(p.numel() * p.element_size() for p in model.module.parameters())


def _optimize(folder: Path) -> int:
    import flowopt
    from tests.zoo.models import ZOO

    model = ZOO["minilm"]()
    program = flowopt.capture(model.module, (), model.kwargs, dynamic=model.dynamic, dims=model.dims)
    size = program.parameter_bytes
    result = flowopt.optimize(program, target="cpu", folder=folder / "minilm.flowopt")
    assert result.report.outcome == "verified", result.verdict.reason
    return size


def _import_everything() -> None:
    import onnxruntime
    import onnxscript
    import torch.onnx._internal.exporter._core
    import transformers.models.bert.modeling_bert

    import flowopt.workflows.optimize

    del onnxruntime, onnxscript, torch, transformers, flowopt


def _peak_bytes() -> int:
    """The process's peak so far. Not ru_maxrss: that starts with the peak of the process that started this one."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise OSError("/proc/self/status has no VmHWM")


def main(mode: str) -> None:
    """Print one line of JSON."""
    work: Callable[[Path], int] = {"bare": _bare, "optimize": _optimize}[mode]
    _import_everything()
    before = _peak_bytes()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        model_bytes = work(Path(folder))
    seconds = time.perf_counter() - started
    peak = _peak_bytes() - before
    print(json.dumps({"seconds": seconds, "peak_bytes": peak, "model_bytes": model_bytes}))


if __name__ == "__main__":
    main(sys.argv[1])
