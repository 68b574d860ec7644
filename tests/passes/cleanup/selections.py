"""Models of which a selection reads a part, that tests of ``hoist-selections`` share."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.passes.programs import randomised

BATCH, TOKENS, WIDTH, HEADS, HIDDEN, CLASSES = 2, 5, 6, 2, 8, 3
Take = Callable[[Tensor], Tensor]


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, *, is_causal: bool = False, is_packed: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.packed = nn.Linear(WIDTH, 3 * WIDTH) if is_packed else None
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
        self.is_causal = is_causal

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        normed = self.first(x)
        if self.packed is None:
            parts = self.query(normed), self.key(normed), self.value(normed)
        else:
            parts = self.packed(normed).chunk(3, dim=-1)
        query, key, value = (p.view(*p.shape[:2], HEADS, WIDTH // HEADS).transpose(1, 2) for p in parts)
        attended = nn.functional.scaled_dot_product_attention(query, key, value, mask, is_causal=self.is_causal)
        x = x + self.out(attended.transpose(1, 2).reshape(x.shape))
        added: Tensor = x + self.down(nn.functional.gelu(self.up(self.second(x))))
        return added


class Classifier(nn.Module):
    """Blocks, a norm, and a head that reads what ``take`` gives of the last hidden state."""

    def __init__(self, take: Take, depth: int = 1, **options: Any) -> None:
        super().__init__()
        self.take = take
        self.blocks = nn.ModuleList(Block(**options) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.blocks:
            x = block(x, mask)
        logits: Tensor = self.head(self.take(self.norm(x)))
        return logits


def first_token(x: Tensor) -> Tensor:
    return x[:, 0]


def last_token(x: Tensor) -> Tensor:
    return x[:, -1]


def classifier(take: Take = first_token, **options: Any) -> Classifier:
    return randomised(Classifier(take, **options))


def tokens(batch: int = BATCH, length: int = TOKENS, seed: int = 0) -> Tensor:
    return torch.randn((batch, length, WIDTH), generator=torch.Generator().manual_seed(seed))


def visible(*shape: int) -> Tensor:
    """A mask that shows the first key everywhere, and hides about a third of the others."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) > 0.3
    mask[..., 0] = True
    return mask
