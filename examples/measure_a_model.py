"""Keep a pipeline in a file, build with measured choices, and time the artifact beside eager torch.

python examples/measure_a_model.py
"""

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import flowopt
from flowopt.measuring.rounds import Plan

PIPELINE = """
preset = "exact"
skip = ["simplify-shapes"]

[options.fold-constants]
max_growth = 65536
"""


class Attention(nn.Module):
    """Queries, keys and values are three layers of one input: whether one is faster depends on the machine."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(64)
        self.query, self.key, self.value, self.out = (nn.Linear(64, 64) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (layer(y).unflatten(-1, (4, 16)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        attended = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(attended.transpose(1, 2).flatten(2))


def main() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 24, 64)
    free = {"x": {0: "batch", 1: "length"}}
    program = flowopt.capture(Attention().eval(), (x,), dynamic=free, dims={"batch": (1, 16), "length": (2, 256)})

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        pipeline = folder / "mine.toml"
        pipeline.write_text(PIPELINE)
        tuned = flowopt.tune(program, passes=str(pipeline), repeats=5)
        tuned.save(folder / "tuned.json")  # part of the build: the same file gives the same artifact
        artifact = folder / "attention.flowopt"
        result = flowopt.optimize(
            program, target="cpu", passes=str(pipeline), tuned=folder / "tuned.json", folder=artifact
        )
        print(f"{result.report.outcome} with {result.report.pipeline}")
        for choice in tuned.merges:
            print(f"  measured at {choice.site}: merged is {choice.gain:.2f} times as fast")

        # A plan this short decides little: its intervals are wide. Leave it out, and a cell takes minutes.
        report = flowopt.bench(
            [artifact], reference=program, vs=["eager"], sizes=[{"batch": 1, "length": 16}], plan=Plan(0.02, 4, 4)
        )
        for cell in report.cells:
            for name, ratio in cell.ratios.items():
                print(f"{cell.label}: {ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}] times the time of {name}")


if __name__ == "__main__":
    main()
