"""Models small enough to adapt in a second, as factories for command lines too, and data for them."""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import flowopt
from flowopt.program.program import Program
from tests.recovery.shifted import images, trained
from tests.zoo.randomise import randomise

WIDTH, HEADS, TOKENS, FEATURES, VOCABULARY, CLASSES = 16, 2, 5, 6, 50, 4
HERE = "tests.workflows.adapting.tiny"


class Block(nn.Module):
    """Attention and an MLP; norms before what they feed, or behind the sums."""

    def __init__(self, *, is_pre_norm: bool) -> None:
        super().__init__()
        self.is_pre_norm = is_pre_norm
        self.norm1 = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.norm2 = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)

    def attended(self, x: Tensor, mask: Tensor | None) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        seen = None if mask is None else mask[:, None, None, :].bool()
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.is_pre_norm:
            x = x + self.attended(self.norm1(x), mask)
            out: Tensor = x + self.down(functional.gelu(self.up(self.norm2(x))))
            return out
        x = self.norm1(x + self.attended(x, mask))
        out = self.norm2(x + self.down(functional.gelu(self.up(x))))
        return out


class PreNorm(nn.Module):
    """A classifier of patches with five norms, each before linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(FEATURES, WIDTH)
        self.blocks = nn.ModuleList([Block(is_pre_norm=True), Block(is_pre_norm=True)])
        self.final = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, patches: Tensor) -> Tensor:
        x = self.embed(patches)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.final(x).mean(1))
        return logits


class PostNorm(nn.Module):
    """A tagger of tokens with padding, with five norms on its stream."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.blocks = nn.ModuleList([Block(is_pre_norm=False), Block(is_pre_norm=False)])
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.norm(self.embed(input_ids))
        for block in self.blocks:
            x = block(x, attention_mask)
        logits: Tensor = self.head(x)
        return logits


def pre_norm() -> dict[str, Any]:
    module = PreNorm()
    randomise(module, seed=1)
    return {"module": module.eval(), "kwargs": patches(3, seed=0)} | _free("patches")


def post_norm() -> dict[str, Any]:
    module = PostNorm()
    randomise(module, seed=2)
    return {"module": module.eval(), "kwargs": texts(3, seed=0)} | _free("input_ids", "attention_mask")


def _free(*names: str) -> dict[str, Any]:
    return {"dynamic": {name: {0: "batch"} for name in names}, "dims": {"batch": (1, 64)}}


def patches(count: int, seed: int) -> dict[str, Tensor]:
    return {"patches": torch.randn(count, TOKENS, FEATURES, generator=torch.Generator().manual_seed(seed))}


def texts(count: int, seed: int) -> dict[str, Tensor]:
    """Token ids, and masks that hide none to three of the last tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = TOKENS - torch.arange(count) % 4
    ids = torch.randint(VOCABULARY, (count, TOKENS), generator=generator)
    return {"input_ids": ids, "attention_mask": (torch.arange(TOKENS) < lengths[:, None]).long()}


def labelled(count: int, seed: int) -> dict[str, Tensor]:
    """Patches, and what the classifier makes of them."""
    given = patches(count, seed)
    return given | {"labels": pre_norm_program().run_named(given)["output"].argmax(-1)}


@cache
def pre_norm_program() -> Program:
    return captured(pre_norm())


@cache
def post_norm_program() -> Program:
    return captured(post_norm())


def captured(made: dict[str, Any]) -> Program:
    """The program of what a factory makes."""
    return flowopt.capture(made["module"], (), made["kwargs"], dynamic=made["dynamic"], dims=made["dims"])


def cnn() -> dict[str, Any]:
    """A convolutional classifier with two batch norms, trained on images of another brightness."""
    return {"module": trained().float(), "kwargs": {"x": images(3, seed=1)[0].float()}} | _free("x")
