"""Rows about archives: what they load as, and what that costs."""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import flowopt
from tests.zoo.capture import undecomposed
from tests.zoo.models import ZOO

_ROOT = Path(__file__).resolve().parents[2]
GIBIBYTE = 1 << 30

# Run in a fresh process, in which transformers cannot be imported.
_COMPARE = """
import sys
sys.modules["transformers"] = None
import torch
import flowopt
program = flowopt.load(sys.argv[1])
kept = torch.load(sys.argv[2])
assert [i.name for i in program.inputs] == list(kept["inputs"][0]), "other inputs"
assert program.tensors.keys() == kept["tensors"].keys(), "other tensors"
for name, tensor in kept["tensors"].items():
    assert torch.equal(program.tensors[name], tensor) and program.tensors[name].dtype == tensor.dtype, name
for inputs, outputs in zip(kept["inputs"], kept["outputs"], strict=True):
    found = program.run_named(inputs)
    assert list(found) == list(outputs), f"outputs {list(found)} instead of {list(outputs)}"
    for name, value in outputs.items():
        assert torch.equal(found[name].nan_to_num(7.0), value.nan_to_num(7.0)), f"{name} differs"
"""

_MEASURE = """
import sys, threading, time
import flowopt
from flowopt.program.loading.load import load
def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))
load(sys.argv[2])  # what the first archive imports is code, whatever its size
before = peak = anonymous()
done = threading.Event()
def watch():
    global peak
    while not done.wait(0.005):
        peak = max(peak, anonymous())
watcher = threading.Thread(target=watch, daemon=True)
watcher.start()
program = load(sys.argv[1])
done.set()
watcher.join()
print(max(peak, anonymous()) - before, program.parameter_bytes)
"""


class Wide(nn.Module):
    """Nearly all of its bytes are one table."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, 1024, _weight=torch.zeros(rows, 1024))
        self.head = nn.Linear(1024, 8)

    def forward(self, ids: Tensor) -> Tensor:
        result: Tensor = self.head(self.table(ids))
        return result


def check_round_trip(name: str) -> None:
    """Save a zoo model with torch, load it where transformers is missing, compare every bit.

    Raises:
        AssertionError: anything differs.
    """
    model = ZOO[name]()
    program = flowopt.capture(model.module, (), model.kwargs, dynamic=model.dynamic, dims=model.dims)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt2"
        torch.export.save(undecomposed(model), path)
        sizes = ({d.name: d.traced for d in program.dims}, {d.name: d.minimum + 2 for d in program.dims})
        inputs = [_inputs(program, one) for one in sizes]
        kept = {
            "tensors": {n: t.detach().clone() for n, t in program.tensors.items()},
            "inputs": inputs,
            "outputs": [program.run_named(one) for one in inputs],
        }
        torch.save(kept, Path(folder) / "kept.pt")
        _run(_COMPARE, str(path), str(Path(folder) / "kept.pt"))


def measured_memory(gibibytes: float) -> tuple[int, int]:
    """Bytes of memory, mapped pages aside, that loading a large archive adds at most, and the archive's bytes."""
    with tempfile.TemporaryDirectory() as folder:
        large, small = Path(folder) / "large.pt2", Path(folder) / "small.pt2"
        for path, rows in ((large, int(gibibytes * GIBIBYTE) // 4096), (small, 16)):
            ids = torch.zeros(2, 3, dtype=torch.int64)
            torch.export.save(torch.export.export(Wide(rows).eval(), (ids,)), path)
        added, stored = map(int, _run(_MEASURE, str(large), str(small)).split())
        assert stored >= large.stat().st_size * 0.99
        return added, large.stat().st_size


def _inputs(program: flowopt.Program, sizes: dict[str, int]) -> dict[str, Tensor]:
    from flowopt.verification.inputs.cases import case_of
    from flowopt.verification.inputs.regimes import normal

    return case_of(program, "smallest", sizes, normal, seed=5).inputs


def _run(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, cwd=_ROOT, check=False
    )
    assert done.returncode == 0, (done.stderr.strip().splitlines() or ["no message"])[-1]
    return done.stdout
