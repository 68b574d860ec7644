"""Optimize a model of your own, read what was done and why not, and run the artifact.

python examples/optimize_a_model.py
"""

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import flowopt


class Classifier(nn.Module):
    """A convolution with batch norm, a layer norm, and two linear layers that read it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.norm = nn.LayerNorm(16)
        self.label = nn.Linear(16, 10)
        self.score = nn.Linear(16, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.norm(self.stem(images).mean(dim=(2, 3)))
        return {"label": self.label(features), "score": self.score(features)}


def main() -> None:
    torch.manual_seed(0)
    model = Classifier()
    model(torch.randn(64, 3, 32, 32))  # in train mode: gives the batch norm statistics of its own
    model.eval()

    # The example has batch 2; the name "batch" makes that axis free, from 1 to 64.
    images = torch.randn(2, 3, 32, 32)
    program = flowopt.capture(model, (images,), dynamic={"images": {0: "batch"}}, dims={"batch": (1, 64)})

    with tempfile.TemporaryDirectory() as folder:
        result = flowopt.optimize(program, target="cpu", folder=Path(folder) / "classifier.flowopt")
        assert result.artifact is not None, result.verdict.reason
        print(f"{result.report.outcome}: {', '.join(sorted(p.name for p in result.artifact.folder.iterdir()))}")
        for record in result.report.passes:
            print(f"  {record.name}: applied at {len(record.applied)} of {record.anchors} sites")
        for refusal in result.report.refusals():
            print(f"    refused at {refusal.site}: {refusal.code}: {refusal.message}")
        outputs = result.artifact.run(torch.randn(5, 3, 32, 32))
        assert isinstance(outputs, dict)
        print({name: tuple(value.shape) for name, value in outputs.items()})


if __name__ == "__main__":
    main()
