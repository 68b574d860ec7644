"""Small models for planted passes: features in, a batch norm first, two free dimensions."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from flowopt.program.capture import capture
from flowopt.program.program import Program
from tests.zoo.models import randomise

CHANNELS, WIDTH = 6, 8
# Even, so that a pass that is wrong at odd sizes is right where its author looked.
TRACED_BATCH, TRACED_LENGTH = 4, 6


@cache
def program(model: Callable[[], nn.Module]) -> Program:
    """The model with random weights, captured with free batch and sequence. No pipeline changes it."""
    module = model()
    randomise(module, seed=7)
    x = torch.randn(TRACED_BATCH, CHANNELS, TRACED_LENGTH, generator=torch.Generator().manual_seed(7))
    return capture(
        module.eval(),
        (x,),
        dynamic={"x": {0: "batch", 2: "sequence"}},
        dims={"batch": (1, 32), "sequence": (2, 32)},
    )


class Stem(nn.Module, ABC):
    """(batch, channels, sequence) through a convolution and a batch norm to (batch, sequence, width)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(CHANNELS, WIDTH, 1)
        self.norm = nn.BatchNorm1d(WIDTH)
        self.head = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.body(self.norm(self.conv(x)).transpose(1, 2)))
        return result

    @abstractmethod
    def body(self, x: Tensor) -> Tensor:
        """What lies between the norm and the head."""


class Rectifying(Stem):
    def body(self, x: Tensor) -> Tensor:
        return torch.relu(x)


class Averaging(Stem):
    def body(self, x: Tensor) -> Tensor:
        return x.mean(1)


class Rooting(Stem):
    def body(self, x: Tensor) -> Tensor:
        return torch.sqrt(x.pow(2))


class Normalizing(Stem):
    """RMSNorm by hand."""

    def body(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)


class TanhGelu(Stem):
    def body(self, x: Tensor) -> Tensor:
        return functional.gelu(x, approximate="tanh")


class Gelu(Stem):
    def body(self, x: Tensor) -> Tensor:
        return functional.gelu(x)


class Silu(Stem):
    def body(self, x: Tensor) -> Tensor:
        return functional.silu(x)


class Summing(Stem):
    """Sums of three, divisions by a number, transposes on both sides of a sum."""

    def body(self, x: Tensor) -> Tensor:
        y = (x + torch.sin(x)) + torch.cos(x) / 3.0
        return (y.transpose(1, 2) + x.transpose(1, 2)).transpose(1, 2)


class Convolving(Stem):
    """A convolution over the whole image, with padding and stride, and a batch norm that nothing can take in."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Conv2d(1, WIDTH, 3, stride=(1, 2), padding=1)
        self.late = nn.BatchNorm2d(WIDTH)

    def body(self, x: Tensor) -> Tensor:
        y: Tensor = self.late(torch.relu(self.image(x.unsqueeze(1))))
        return y.mean(-1).transpose(1, 2)


class Attending(Stem):
    """One pre-norm attention layer with two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def body(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(self.before(x)).view(batch, length, 3, 2, WIDTH // 2).permute(2, 0, 3, 1, 4).unbind(0)
        y = functional.scaled_dot_product_attention(q, k, v)
        return x + y.transpose(1, 2).reshape(batch, length, WIDTH)
