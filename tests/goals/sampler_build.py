"""The row of building: a sampler of 50 steps against one step of its network exported the plain way.

``python -m tests.goals.sampler_build folded|plain`` prints the seconds of one run.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from flowopt.lowering.onnx.sampler import lower_sampler_to_onnx
from flowopt.lowering.staging import Staging
from flowopt.sampling import ClassifierFree, fold
from tests.benchmarks.commit import ROOT
from tests.goals import sampler_dit
from tests.goals.row import Measured

MOST = 3.0
_STEPS, _RUNS = 50, 3
_GUIDANCE = ClassifierFree(4.0, unconditional={"label": 10.0}, order="conditional-first")


def measure() -> Measured:
    """The row: medians of alternated runs, each in a process of its own."""
    found: dict[str, list[dict[str, float]]] = {"folded": [], "plain": []}
    for _ in range(_RUNS):
        for kind, runs in found.items():
            command = [sys.executable, "-m", "tests.goals.sampler_build", kind]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            runs.append(json.loads(done.stdout.splitlines()[-1]))
    seconds = {part: statistics.median(run[part] for run in runs) for runs in found.values() for part in runs[0]}
    ours = seconds["fold"] + seconds["lower"]
    ratio, whole = ours / seconds["plain"], (ours + seconds["capture"]) / seconds["plain"]
    details = (
        f"{_STEPS} steps: fold {seconds['fold']:.1f} s, lower {seconds['lower']:.1f} s; "
        f"plain export of one step {seconds['plain']:.1f} s; medians of {_RUNS}",
        f"with {seconds['capture']:.1f} s of capturing the network: {whole:.2f}",
    )
    return Measured(f"{ratio:.2f} of a plain export of one step", ratio <= MOST, details)


def _folded(folder: Path) -> dict[str, float]:
    started = time.perf_counter()
    program = sampler_dit.program()
    captured = time.perf_counter()
    folded = fold(program, sampler_dit.spec(_STEPS), guidance=_GUIDANCE, sample="sample")
    at_lowering = time.perf_counter()
    with Staging(folder / "sampler") as staging:
        lower_sampler_to_onnx(folded, staging, form="scan")
    ended = time.perf_counter()
    return {"capture": captured - started, "fold": at_lowering - captured, "lower": ended - at_lowering}


def _plain(folder: Path) -> dict[str, float]:
    network, batch = sampler_dit.Dit(), torch.export.Dim("batch", min=1, max=16)
    kwargs = sampler_dit.examples(3)
    started = time.perf_counter()
    axes = {name: {0: batch} for name in kwargs}
    torch.onnx.export(
        network, (), folder / "plain.onnx", kwargs=kwargs, dynamic_shapes=axes, dynamo=True, verbose=False
    )
    return {"plain": time.perf_counter() - started}


def _warm_up(folder: Path) -> None:
    """What is loaded on first use counts for neither."""
    torch.onnx.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),), folder / "warm.onnx", dynamo=True, verbose=False)


def main(kind: str) -> None:
    """Print the seconds of each part of one run."""
    with tempfile.TemporaryDirectory() as folder:
        _warm_up(Path(folder))
        seconds = _folded(Path(folder)) if kind == "folded" else _plain(Path(folder))
    print(json.dumps(seconds))


if __name__ == "__main__":
    main(sys.argv[1])
