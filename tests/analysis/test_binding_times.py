"""Which inputs a value depends on: by its numbers, not by its sizes."""

import torch
from torch import Tensor, nn

from flowopt.analysis.binding_times import RANDOM, binding_times
from flowopt.program.capture import capture


class Mixed(nn.Module):
    """Values of each kind, as outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor, t: Tensor) -> dict[str, Tensor]:
        return {
            "stored": self.weight * 2,
            "sized": torch.ones(x.shape[0]) * self.weight.sum(),
            "timed": t.sin() * self.weight.sum(),
            "both": x * t[:, None],
            "drawn": torch.rand(x.shape[0]) + t,
        }


def test_labels() -> None:
    inputs = (torch.randn(4, 3), torch.randn(4))
    program = capture(Mixed().eval(), inputs, dynamic={"x": {0: "batch"}, "t": {0: "batch"}})
    labels = binding_times(program.graph)
    returned = program.graph.output_node().args[0]
    assert isinstance(returned, (tuple, list))
    found = {o.name: labels[node] for o, node in zip(program.outputs, returned, strict=True)}
    assert found == {
        "stored": frozenset(),
        "sized": frozenset(),
        "timed": {"t"},
        "both": {"x", "t"},
        "drawn": {"t", RANDOM},
    }
