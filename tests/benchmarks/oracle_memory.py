"""Peak memory of the float64 oracle of a model, beside the model's own bytes.

    python -m tests.benchmarks.oracle_memory oracle|evidence GIBIBYTES      one run: one line of JSON

The model is a language model's shape: an embedding, blocks, and an output layer as large as the embedding.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

_ROOT = Path(__file__).resolve().parents[2]
_WIDTH = 1024
_TABLE_SHARE = 0.3


@dataclass(frozen=True, slots=True)
class Peak:
    """Bytes above the imports at the highest point, the model included, and the model's bytes."""

    peak_bytes: int
    model_bytes: int


class Block(nn.Module):
    """A pre-norm feed-forward block."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(_WIDTH)
        self.up, self.down = nn.Linear(_WIDTH, 4 * _WIDTH), nn.Linear(4 * _WIDTH, _WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.down(torch.relu(self.up(self.norm(x))))
        return result


class Language(nn.Module):
    """Ids to logits."""

    def __init__(self, model_bytes: float) -> None:
        super().__init__()
        rows = int(_TABLE_SHARE * model_bytes / 4 / _WIDTH)
        self.table = nn.Embedding(rows, _WIDTH)
        block_bytes = 4 * 8 * _WIDTH**2
        self.blocks = nn.Sequential(*[Block() for _ in range(int((1 - 2 * _TABLE_SHARE) * model_bytes / block_bytes))])
        self.head = nn.Linear(_WIDTH, rows, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        result: Tensor = self.head(self.blocks(self.table(ids)))
        return result


def measured_peak(mode: str, gibibytes: float) -> Peak:
    """Peak of one run in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.oracle_memory", mode, str(gibibytes)]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=True)
    return Peak(**json.loads(done.stdout.splitlines()[-1]))


def main(mode: str, gibibytes: float) -> None:
    """Print one line of JSON."""
    import flowopt
    from flowopt.verification.evidence import collect_evidence
    from flowopt.verification.inputs.cases import quick_cases
    from flowopt.verification.running import run_case

    # What a first run imports is code, whatever the model's size.
    small = flowopt.capture(Block().eval(), (torch.zeros(1, _WIDTH),))
    collect_evidence(small)
    before = _status("VmRSS")
    module = Language(gibibytes * 2**30).eval()
    ids = torch.zeros(1, 4, dtype=torch.int64)
    program = flowopt.capture(module, (ids,))
    (traced, *_) = quick_cases(program, 0)
    # Writing 5 resets the peak: building the model is not part of the oracle.
    Path("/proc/self/clear_refs").write_text("5")
    if mode == "oracle":
        run_case(program, traced, raised=True)
    else:
        collect_evidence(program, cases=(traced,))
    print(json.dumps({"peak_bytes": _status("VmHWM") - before, "model_bytes": program.parameter_bytes}))


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {name}")


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
