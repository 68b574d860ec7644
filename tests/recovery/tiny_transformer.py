"""A pre-norm transformer of two blocks on token ids, with everything that is stored but not trained, captured."""

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

import flowopt
from flowopt.program.program import Program
from tests.zoo.randomise import randomise

VOCABULARY, WIDTH, HEADS, TOKENS = 19, 12, 3, 5


class Block(nn.Module):
    """Attention with rotary tables and an additive mask of scores, then an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.before_attention = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.before_mlp = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)
        self.layer_scale = nn.Parameter(torch.ones(WIDTH))
        angles = torch.outer(torch.arange(TOKENS), 1.0 / 10 ** torch.arange(0, 1, 0.25))
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())
        self.register_buffer("causal", torch.full((TOKENS, TOKENS), float("-inf")).triu(1))

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        batch = x.shape[0]
        packed = self.qkv(self.before_attention(x)).reshape(batch, TOKENS, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        query, key = (part * self.cos + part.flip(-1) * self.sin for part in (packed[0], packed[1]))
        scores = query @ key.transpose(-1, -2) / 2 + self.causal + hidden
        mixed = (scores.softmax(-1) @ packed[2]).transpose(1, 2).reshape(batch, TOKENS, WIDTH)
        x = x + self.out(mixed) * self.layer_scale
        return x + self.down(functional.gelu(self.up(self.before_mlp(x))))


class TinyTransformer(nn.Module):
    """Token ids and a mask (1: real) to logits; the head is the embedding's table again."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Parameter(torch.zeros(1, TOKENS, WIDTH))
        self.blocks = nn.ModuleList([Block(), Block()])
        self.final = nn.LayerNorm(WIDTH)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.embedding(ids) + self.positions
        hidden = (1.0 - mask[:, None, None, :].to(x.dtype)) * -1e4
        for block in self.blocks:
            x = block(x, hidden)
        return functional.linear(self.final(x), self.embedding.weight)


def tiny_transformer(dtype: torch.dtype = torch.float64, seed: int = 3) -> TinyTransformer:
    """In eval mode, all its parameters random."""
    module = TinyTransformer()
    randomise(module, seed)
    return module.eval().to(dtype)


def inputs(batch: int, seed: int) -> dict[str, Tensor]:
    """Token ids, and masks that hide none to three of the last tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = TOKENS - torch.arange(batch) % 4
    mask = (torch.arange(TOKENS) < lengths[:, None]).long()
    return {"ids": torch.randint(VOCABULARY, (batch, TOKENS), generator=generator), "mask": mask}


def program_of(module: nn.Module) -> Program:
    """Captured with a free batch."""
    example = inputs(4, seed=0)
    return flowopt.capture(
        module, (), example, dynamic={"ids": {0: "batch"}, "mask": {0: "batch"}}, dims={"batch": (1, 64)}
    )


def norms_of(program: Program) -> dict[str, str]:
    """Name of every layer norm's value to the name of what it normalises, in graph order."""
    found = [n for n in program.graph.nodes if n.target is torch.ops.aten.layer_norm.default]
    return {node.name: str(node.args[0]) for node in found}


def tiny_program(dtype: torch.dtype = torch.float64) -> Program:
    """The program of ``tiny_transformer(dtype)``, captured once."""
    return _captured(dtype).copy()


@cache
def _captured(dtype: torch.dtype) -> Program:
    return program_of(tiny_transformer(dtype))
