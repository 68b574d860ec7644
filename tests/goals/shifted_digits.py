"""A small convolutional network with batch norms, trained on digits, and asked about digits that look otherwise."""

from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import flowopt
from examples.digits_vit import CLASSES, load_images, split

_EPOCHS = 15
_BATCH = 64


class DigitsCNN(nn.Module):
    """Images (batch, 1, 8, 8) to logits (batch, 10)."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.middle = nn.Sequential(
            nn.Conv2d(width, 2 * width, 3, padding=1, stride=2), nn.BatchNorm2d(2 * width), nn.ReLU()
        )
        self.last = nn.Sequential(nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU())
        self.head = nn.Linear(2 * width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(F.avg_pool2d(self.last(self.middle(self.stem(images))), 4).flatten(1))
        return logits


@cache
def trained() -> DigitsCNN:
    """The network, trained on clean images, in eval mode."""
    images, labels = load_images()
    seen, _ = split()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = DigitsCNN()
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
        for _ in range(_EPOCHS):
            for chosen in seen[torch.randperm(len(seen))].split(_BATCH):
                loss = F.cross_entropy(model(images[chosen]), labels[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return model.eval()


def shifted(images: Tensor) -> Tensor:
    """The same digits from another scanner: little contrast, a bright ground and noise."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    return 0.35 * images + 0.45 + 0.08 * noise


def recalibrated(way: str, folder: Path) -> flowopt.AdaptResult:
    """The network with statistics of shifted images: those of the training half calibrate, the others judge."""
    images, labels = load_images()
    seen, held_out = split()
    there = shifted(images)
    program = flowopt.capture(trained(), (there[:3],), dynamic={"images": {0: "batch"}}, dims={"batch": (1, 128)})
    return flowopt.adapt(
        program,
        recalibrate=way,
        data={"images": there[seen], "labels": labels[seen]},
        held_out={"images": there[held_out], "labels": labels[held_out]},
        batch_size=_BATCH,
        metric="accuracy:labels",
        folder=folder,
        timing=False,
    )
