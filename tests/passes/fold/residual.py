"""Residual stacks of our own: a stream, blocks, and norms wherever a test wants them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

WIDTH = 6
EPS = 0.1


def norm(width: int = WIDTH, *, eps: float = EPS, affine: bool = True) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=eps, elementwise_affine=affine)


class Block(nn.Module):
    """One branch: two layers with a GELU between them."""

    def __init__(self, width: int = WIDTH, *, bias: bool = True) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width, bias=bias), nn.Linear(2 * width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(nn.functional.gelu(self.up(x)))
        return out


class Stack(nn.Module):
    """Token and position embeddings, pre-norm blocks, a last norm and a head.

    ``step`` is one block: of the module, the stream and the number of the block.
    """

    def __init__(
        self,
        step: Callable[["Stack", Tensor, int], Tensor] | None = None,
        *,
        depth: int = 2,
        width: int = WIDTH,
        eps: Sequence[float] = (EPS,),
    ) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(11, width), nn.Parameter(torch.zeros(1, 5, width))
        self.norms = nn.ModuleList(norm(width, eps=eps[i % len(eps)]) for i in range(2 * depth))
        self.blocks = nn.ModuleList(Block(width, bias=i % 2 == 0) for i in range(2 * depth))
        self.last, self.head = norm(width), nn.Linear(width, 3)
        self.scale = nn.Parameter(torch.ones(width))
        self.step, self.depth = step or pre, depth

    def embedded(self, ids: Tensor) -> Tensor:
        out: Tensor = self.tokens(ids) + self.places
        return out

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedded(ids)
        for i in range(self.depth):
            x = self.step(self, x, i)
        out: Tensor = self.head(self.last(x))
        return out


def pre(m: Stack, x: Tensor, i: int) -> Tensor:
    return x + m.blocks[i](m.norms[i](x))


def ids(seed: int = 0) -> Tensor:
    return torch.randint(0, 11, (2, 5), generator=torch.Generator().manual_seed(seed))
