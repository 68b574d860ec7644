"""Compile a model with TVM, and run the artifact where torch cannot be imported.

python examples/run_without_torch.py

Needs apache-tvm (pip install "flowopt[tvm]") and a C++ compiler, which links the library. Running it needs neither
torch nor that compiler.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import flowopt

# None is how Python spells "not installed": importing torch raises, here and in whatever this process imports.
ELSEWHERE = """
import sys

sys.modules["torch"] = None

import numpy as np
from flowopt.runtime.relax_library import RelaxLibrary

folder, inputs, outputs = sys.argv[1:]
library = RelaxLibrary.open(folder)  # this runs what the library says: open only what you trust
np.savez(outputs, **library.run(dict(np.load(inputs))))

try:
    import torch
except ImportError:
    print(f"without torch: {', '.join(library.inputs)} to {', '.join(library.outputs)}")
"""


class Classifier(nn.Module):
    """A layer norm and the two layers behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(32)
        self.hidden = nn.Linear(32, 64)
        self.label = nn.Linear(64, 10)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        return {"label": self.label(torch.relu(self.hidden(self.norm(features))))}


def main() -> None:
    torch.manual_seed(0)
    model = Classifier().eval()
    program = flowopt.capture(model, (torch.randn(2, 32),), dynamic={"features": {0: "batch"}}, dims={"batch": (1, 64)})

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "classifier.flowopt"
        result = flowopt.optimize(program, target="tvm", folder=folder)
        assert result.artifact is not None, result.verdict.reason
        print(f"{result.report.outcome}: {', '.join(sorted(p.name for p in folder.iterdir()))}")

        features = torch.randn(5, 32)
        inputs, outputs = Path(scratch) / "inputs.npz", Path(scratch) / "outputs.npz"
        np.savez(inputs, features=features.numpy())
        done = subprocess.run(
            [sys.executable, "-c", ELSEWHERE, str(folder), str(inputs), str(outputs)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        print(done.stdout, end="")

        with torch.no_grad(), np.load(outputs) as found:
            wanted = model(features)["label"].numpy()
            difference = np.abs(found["label"] - wanted).max() / np.abs(wanted).max()
            # Sums of 32 and 64 products in another order: a few roundings of float32.
            assert difference < 1e-5, difference
            print(f"the numbers agree: the largest difference is {difference:.1e} of the largest number")


if __name__ == "__main__":
    main()
