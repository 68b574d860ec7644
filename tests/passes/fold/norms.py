"""Norms as people write them, and what may stand between a norm and the linear layers that read it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.passes.programs import Written, randomised

WIDTH = 6


class HuggingFaceRMSNorm(nn.Module):
    """As in transformers' Llama: float32 inside, the gain after the cast back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        z = x.float() if x.dtype is torch.bfloat16 else x
        z = z * torch.rsqrt(z.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * z.to(x.dtype)


class GemmaRMSNorm(HuggingFaceRMSNorm):
    """As in transformers' Gemma: the gain is 1 + weight, applied before the cast back."""

    def forward(self, x: Tensor) -> Tensor:
        z = x.float() if x.dtype is torch.bfloat16 else x
        z = z * torch.rsqrt(z.pow(2).mean(-1, keepdim=True) + 1e-6)
        return (z * (1.0 + self.weight.to(z.dtype))).type_as(x)


class WrittenLayerNorm(nn.Module):
    """A layer norm from single operators, with a shift."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + 1e-5) * self.weight + self.bias


NORMS: dict[str, Callable[[int], nn.Module]] = {
    # Large epsilons, because a rewrite that falls back to the default must show.
    "layer": lambda width: nn.LayerNorm(width, eps=0.1),
    "layer-no-shift": lambda width: nn.LayerNorm(width, eps=0.3, bias=False),
    "rms": lambda width: nn.RMSNorm(width, eps=0.2),
    "rms-default-epsilon": nn.RMSNorm,
    "hugging-face": HuggingFaceRMSNorm,
    "gemma": GemmaRMSNorm,
    "written-layer": WrittenLayerNorm,
}
# What a reader may do first, and how many features it then sees. The norm's value is (batch, 4, WIDTH).
PATHS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "none": (lambda y: y, WIDTH),
    "view": (lambda y: y.reshape(-1, WIDTH), WIDTH),
    "transpose": (lambda y: y.transpose(0, 1), WIDTH),
    "permute": (lambda y: y.permute(1, 0, 2).contiguous(), WIDTH),
    "there-and-back": (lambda y: y.mT.clone().mT, WIDTH),
    # Unlike a transpose, a rotation is not its own inverse.
    "rotation": (lambda y: y.permute(2, 0, 1).transpose(0, 1).transpose(1, 2), WIDTH),
    "unsqueeze": (lambda y: y.unsqueeze(1).expand(-1, 2, -1, -1), WIDTH),
    "first-token": (lambda y: y[:, 0], WIDTH),
    "last-token": (lambda y: y[:, -1:].squeeze(1), WIDTH),
    "every-second-token": (lambda y: y[:, ::2], WIDTH),
    "first-features": (lambda y: y[..., :4], 4),
    "last-features": (lambda y: y[..., -4:], 4),
    "more-features-than-there-are": (lambda y: y[..., -100:], WIDTH),
    "slice-of-a-slice": (lambda y: y[..., 1:][..., 2:4], 2),
    "chunk": (lambda y: y.chunk(3, dim=-1)[1], 2),
    "split": (lambda y: y.split([1, 2, 3], dim=-1)[2], 3),
    "split-of-a-slice": (lambda y: y[..., 1:].split([2, 3], dim=-1)[1], 3),
    "split-tokens": (lambda y: y.split([1, 3], dim=1)[1], WIDTH),
    "unbind": (lambda y: y.unbind(1)[2], WIDTH),
    "squeeze-all": (lambda y: y[:, :1].squeeze(), WIDTH),
    "squeeze-two": (lambda y: y[:, :1, None].squeeze((1, 2)), WIDTH),
    "matrix-transposed-twice": (lambda y: y[0].t().t(), WIDTH),
    "double": (lambda y: y.to(torch.float64).to(y.dtype), WIDTH),
}


class Read(nn.Module):
    """A norm and one linear layer behind each of these paths; the outputs are those of the layers."""

    def __init__(self, norm: nn.Module, *paths: str, bias: bool = True) -> None:
        super().__init__()
        self.norm, self.paths = norm, paths
        self.layers = nn.ModuleList(nn.Linear(PATHS[p][1], 3 + i, bias=bias) for i, p in enumerate(paths))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.norm(x)
        return tuple(fc(PATHS[path][0](y)) for fc, path in zip(self.layers, self.paths, strict=True))


def normed(forward: Callable[..., Any], norm: nn.Module | None = None, **parts: nn.Module | Tensor) -> Written:
    """``forward`` with a layer norm called ``norm`` and a linear layer called ``fc``."""
    fc = nn.Linear(WIDTH, 5)
    return randomised(Written(forward, **({"norm": norm or nn.LayerNorm(WIDTH), "fc": fc} | parts)))
