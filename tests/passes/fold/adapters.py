"""Layers with low-rank adapters beside them, in the structure of the libraries that train them."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Lora(nn.Module):
    """A layer and its active adapters: ``base(x) + sum of scaling * up(down(dropout(x)))``."""

    def __init__(self, base: nn.Module, pairs: list[tuple[nn.Module, nn.Module]], scaling: float = 0.5) -> None:
        super().__init__()
        self.base = base
        self.down = nn.ModuleList(down for down, _ in pairs)
        self.up = nn.ModuleList(up for _, up in pairs)
        self.dropout = nn.Dropout(0.1)
        self.scaling = scaling

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.base(x)
        kept = result.dtype
        for down, up in zip(self.down, self.up, strict=True):
            result = result + up(down(self.dropout(x.to(next(down.parameters()).dtype)))) * self.scaling
        return result.to(kept)


class Dora(nn.Module):
    """A linear layer whose updated weight has rows of learned length; the base's output is used twice."""

    def __init__(self, inputs: int, outputs: int, rank: int, scaling: float = 0.5) -> None:
        super().__init__()
        self.base = nn.Linear(inputs, outputs)
        self.down = nn.Linear(inputs, rank, bias=False)
        self.up = nn.Linear(rank, outputs, bias=False)
        self.magnitude = nn.Parameter(torch.ones(outputs))
        self.scaling = scaling

    def forward(self, x: Tensor) -> Tensor:
        result = self.base(x)
        identity = torch.eye(self.down.weight.shape[1], dtype=x.dtype)
        update = self.up(self.down(identity)).T
        length = torch.linalg.norm(self.base.weight + self.scaling * update, dim=1)
        magnitude = (self.magnitude / length).view(1, -1)
        adapted = self.up(self.down(x))
        change = (magnitude - 1) * (result - self.base.bias) + magnitude * adapted * self.scaling
        summed: Tensor = result + change
        return summed


class LoraEmbedding(nn.Module):
    """A table and its adapter, whose matrices are stored transposed."""

    def __init__(self, entries: int, width: int, rank: int, scaling: float = 0.5) -> None:
        super().__init__()
        self.base = nn.Embedding(entries, width, padding_idx=0)
        self.down = nn.Parameter(torch.zeros(rank, entries))
        self.up = nn.Parameter(torch.zeros(width, rank))
        self.scaling = scaling

    def forward(self, ids: Tensor) -> Tensor:
        result: Tensor = self.base(ids)
        return result + (F.embedding(ids, self.down.T, padding_idx=0) @ self.up.T) * self.scaling


class Conv1D(nn.Module):
    """GPT-2's linear layer, whose weight is stored (in, out)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return flat.view(*x.shape[:-1], self.weight.shape[1])


def lora_linear(inputs: int = 6, outputs: int = 5, ranks: tuple[int, ...] = (2,)) -> Lora:
    """A linear layer with a bias, and adapters without."""
    pairs: list[tuple[nn.Module, nn.Module]] = [
        (nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=False)) for rank in ranks
    ]
    return Lora(nn.Linear(inputs, outputs), pairs)


def lora_convolution(inputs: int = 3, outputs: int = 5, rank: int = 2, **sliding: int) -> Lora:
    """A 3 by 3 convolution; the adapter's first one moves as it does, the second is pointwise."""
    down = nn.Conv2d(inputs, rank, 3, bias=False, **sliding)  # type: ignore[arg-type]  # all of them take an integer
    up = nn.Conv2d(rank, outputs, 1, bias=False)
    return Lora(nn.Conv2d(inputs, outputs, 3, **sliding), [(down, up)])  # type: ignore[arg-type]
