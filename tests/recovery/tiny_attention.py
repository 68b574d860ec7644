"""A tagger of two attentions on tokens with padding, and leaves that take the places of these."""

from functools import cache

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

import flowopt
from flowopt.ops.attention import AttentionShape, InPlaceOfSoftmax, LinearForm, MeanAttention
from flowopt.program.program import Program
from flowopt.recovery.trainable import Trainable
from tests.zoo.randomise import randomise

VOCABULARY, WIDTH, HEADS, TOKENS, CLASSES = 23, 12, 2, 7, 5
SHAPE = AttentionShape(HEADS, WIDTH // HEADS, WIDTH // HEADS, is_causal=False, scale=(WIDTH // HEADS) ** -0.5)


class Block(nn.Module):
    """Attention before a norm, and an MLP; the projections are layers of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        seen = self.norm(x)
        query, key, value = (
            layer(seen).unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None, :].bool())
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        out: Tensor = x + self.down(functional.gelu(self.up(x)))
        return out


class Tagger(nn.Module):
    """Token ids and a mask (1: real) to logits of every token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x, mask)
        logits: Tensor = self.head(x)
        return logits


def tagger(dtype: torch.dtype = torch.float64) -> Tagger:
    """In eval mode, all its parameters random, its scores large enough to choose."""
    module = Tagger()
    randomise(module, 4)
    with torch.no_grad():
        for block in module.blocks:
            block.get_parameter("q.weight").mul_(2.0)
    return module.eval().to(dtype)


def texts(batch: int, seed: int) -> dict[str, Tensor]:
    """Token ids, and masks that hide none to three of the last tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = TOKENS - torch.arange(batch) % 4
    mask = (torch.arange(TOKENS) < lengths[:, None]).long()
    return {"ids": torch.randint(VOCABULARY, (batch, TOKENS), generator=generator), "mask": mask}


def tagger_program(dtype: torch.dtype = torch.float64) -> Program:
    """Captured once with a free batch."""
    return _captured(dtype).copy()


@cache
def _captured(dtype: torch.dtype) -> Program:
    free = {"ids": {0: "batch"}, "mask": {0: "batch"}}
    return flowopt.capture(tagger(dtype), (), texts(3, seed=0), dynamic=free, dims={"batch": (1, 64)})


def attentions(program: Program) -> dict[str, tuple[str, ...]]:
    """Name of every attention's value to the names of query, key, value and mask, in graph order."""
    found: dict[str, tuple[str, ...]] = {}
    for node in program.graph.nodes:
        if node.target is torch.ops.aten.scaled_dot_product_attention.default:
            found[node.name] = tuple(arg.name for arg in node.args if isinstance(arg, fx.Node))
    return found


class MappedAttention(LinearForm):
    """Linear attention with a learnt map: exp(W x) of queries and keys; at first W is the identity, scaled."""

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__()
        self.shape, self.form, self.chunk = shape, "parallel", 64
        self.map = nn.Parameter(torch.eye(shape.head_dim).repeat(shape.heads, 1, 1) * shape.scale**0.5)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None = None) -> Tensor:
        features = [torch.cat([(x @ self.map).exp(), (-x @ self.map).exp()], -1) for x in (query, key)]
        if key_mask is not None:
            features[1] = features[1] * key_mask.to(query.dtype).transpose(-1, -2)
        state, total = features[1].transpose(-1, -2) @ value, features[1].sum(-2, keepdim=True)
        return (features[0] @ state) / (features[0] * total).sum(-1, keepdim=True)

    def initial_state(self, like: Tensor) -> tuple[Tensor, ...]:
        return (like,)

    def step(
        self, query: Tensor, key: Tensor, value: Tensor, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        return value, state


def mean_leaves(program: Program) -> dict[str, tuple[tuple[str, ...], nn.Module]]:
    """The mean of the values in every place."""
    return {name: (read, InPlaceOfSoftmax(MeanAttention(SHAPE))) for name, read in attentions(program).items()}


def mapped_leaves(program: Program) -> dict[str, tuple[tuple[str, ...], nn.Module]]:
    """Attention with a learnt map in every place."""
    return {
        name: (read, InPlaceOfSoftmax(MappedAttention(SHAPE)).to(torch.float64))
        for name, read in attentions(program).items()
    }


def linear_student(program: Program | None = None) -> Trainable:
    """The tagger with a learnt map in the place of each attention."""
    found = tagger_program() if program is None else program
    return Trainable(found, mapped_leaves(found), padding="mask").eval()
