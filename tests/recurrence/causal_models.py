"""Small causal models whose tokens are carried on by sums alone."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from flowopt.ops.attention import AttentionShape, linearization
from flowopt.passes.cleanup.canonicalize_aten import CanonicalizeAten
from flowopt.pipeline.runner import run_passes
from flowopt.program.capture import capture
from flowopt.program.program import Program
from tests.verification.substitute import Model
from tests.zoo.models import randomise

HEADS, WIDTH, VOCABULARY, LONGEST = 2, 16, 50, 64
SHAPE = AttentionShape(HEADS, WIDTH // HEADS, WIDTH // HEADS, True, (WIDTH // HEADS) ** -0.5)


class Decoder(nn.Module):
    """A pre-norm layer over token and position embeddings; attention is a function of queries, keys and values."""

    def __init__(self, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Parameter(torch.randn(LONGEST, WIDTH))
        self.norm = nn.LayerNorm(WIDTH)
        self.packed, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.attend = attend

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions[: ids.shape[1]]
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in self.packed(self.norm(x)).chunk(3, -1))
        result: Tensor = x + self.out(self.attend(q, k, v).transpose(1, 2).flatten(2))
        return result


def decoder(name: str) -> Program:
    """With a stand-in of flowopt's own."""
    return of_ids(Decoder(linearization(name)(SHAPE, form="parallel")))


def of_ids(module: nn.Module) -> Program:
    """Captured with a free batch and a free length, random weights."""
    randomise(module, seed=7)
    ids = torch.randint(0, VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(7))
    return canonical(
        capture(
            module.eval(),
            (ids,),
            dynamic={"ids": {0: "batch", 1: "sequence"}},
            dims={"batch": (1, 8), "sequence": (1, LONGEST)},
        )
    )


def on_tokens(body: Callable[[Tensor], Tensor]) -> Program:
    """linear -> the function under test -> linear, captured with a free batch and a free length, random weights."""
    module = Model(body)
    randomise(module, seed=8)
    x = torch.randn(3, 9, 8, generator=torch.Generator().manual_seed(8))
    return canonical(
        capture(
            module.eval(),
            (x,),
            dynamic={"x": {0: "batch", 1: "sequence"}},
            dims={"batch": (1, 8), "sequence": (1, LONGEST)},
        )
    )


def unbounded(body: nn.Module) -> Program:
    """Captured with a free length that has no largest."""
    dynamic = {"x": {0: "batch", 1: "sequence"}}
    return capture(body.eval(), (torch.randn(3, 9, 8),), dynamic=dynamic)


def canonical(program: Program) -> Program:
    return run_passes(program, [CanonicalizeAten()]).program
