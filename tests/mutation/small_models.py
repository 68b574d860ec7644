"""Two small models of what the zoo lacks: pools over free sizes, two equal outputs, decisions, guarded functions."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from flowopt.program.capture import capture
from flowopt.program.program import Program
from tests.zoo.models import randomise

_WIDTH = 8


class Pooling(nn.Module):
    """Images of free height and width; the norm comes before a padded convolution, and no ReLU before the pool."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, _WIDTH, 3, padding=1)
        self.left, self.right = nn.Linear(_WIDTH, 5), nn.Linear(_WIDTH, 5)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = functional.max_pool2d(self.second(self.norm(self.first(images))), 3, 2, 1)
        maps = functional.relu6(functional.avg_pool2d(maps, 3, 2, 1))
        features = maps.mean((2, 3))
        return {"left": self.left(features), "right": self.right(features)}


class Deciding(nn.Module):
    """Softplus, logarithms, a norm by hand, a running sum, a division of integers, a decision."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(_WIDTH, _WIDTH), nn.Linear(_WIDTH, 6)

    def forward(self, features: Tensor, steps: Tensor) -> dict[str, Tensor]:
        hidden = self.first(features)
        size = torch.sqrt(hidden.pow(2)) + functional.softplus(hidden)
        spread = hidden.var(-1, keepdim=True) + hidden.logsumexp(-1, keepdim=True)
        unit = hidden / hidden.norm(dim=-1, keepdim=True).clamp(min=1e-6)
        third = torch.div(steps, 3, rounding_mode="floor").to(hidden.dtype).unsqueeze(-1)
        mixed = torch.softmax(hidden, -1) + unit + torch.cumsum(torch.tanh(hidden), 1)
        logits = self.last(size + spread + mixed + third)
        return {"scores": torch.log_softmax(logits, -1), "decision": logits.argmax(-1)}


def pooling() -> Program:
    """Free batch, height and width; even traced sizes, which hide most of what rounding does."""
    module = Pooling()
    randomise(module, seed=11)
    images = torch.randn(4, 3, 16, 24, generator=torch.Generator().manual_seed(11))
    return capture(
        module.eval(),
        (images,),
        dynamic={"images": {0: "batch", 2: "height", 3: "width"}},
        dims={"batch": (1, 64), "height": (8, 48), "width": (8, 48)},
    )


def deciding() -> Program:
    """Free batch and length."""
    module = Deciding()
    randomise(module, seed=12)
    generator = torch.Generator().manual_seed(12)
    features = torch.randn(4, 6, _WIDTH, generator=generator)
    steps = torch.randint(-9, 10, (4, 6), generator=generator)
    axes = {0: "batch", 1: "sequence"}
    return capture(
        module.eval(),
        (features, steps),
        dynamic={"features": dict(axes), "steps": dict(axes)},
        dims={"batch": (1, 64), "sequence": (2, 64)},
    )
