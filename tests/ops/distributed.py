"""Training steps of norms on a share of each batch, in one process or in two that talk through gloo."""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from flowopt.ops import AlphaBatchNorm, PowerNorm, RegionNorm, UnifiedNorm, UnMixTNS

_STEPS = 3


def _power(groups: int | None, warmup_iters: int) -> PowerNorm:
    return PowerNorm(4, groups=groups, warmup_iters=warmup_iters, dtype=torch.float64)


class _OfImages(nn.Module):
    """A norm of images on tokens: a row of pixels each; the mask is the region, where there are any."""

    def __init__(self, norm: UnMixTNS | RegionNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor, pad_mask: Tensor) -> Tensor:
        images = x.movedim(-1, 1)[..., None]
        arguments = (images, pad_mask[:, None, :, None]) if isinstance(self.norm, RegionNorm) else (images,)
        result: Tensor = self.norm(*arguments)
        return result.squeeze(-1).movedim(1, -1)


NORMS: dict[str, Callable[[], nn.Module]] = {
    "power, warm-up": lambda: _power(None, 10),
    "power, running": lambda: _power(None, 1),
    "power, groups": lambda: _power(2, 1),
    "unified, warm-up": lambda: UnifiedNorm(4, dtype=torch.float64),
    "unified, window": lambda: UnifiedNorm(4, window_size=2, warmup_iters=0, dtype=torch.float64),
    "alpha": lambda: AlphaBatchNorm(4, target_weight=0.3, momentum=0.1, dtype=torch.float64),
    "unmix": lambda: _OfImages(UnMixTNS(4, components=3, dtype=torch.float64)),
    "region": lambda: _OfImages(RegionNorm(4, dtype=torch.float64)),
}


class Model(nn.Module):
    """A norm between two linear layers."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4, dtype=torch.float64)
        self.norm = norm
        self.last = nn.Linear(4, 2, dtype=torch.float64)

    def forward(self, x: Tensor, pad_mask: Tensor) -> Tensor:
        result: Tensor = self.last(self.norm(self.first(x), pad_mask).tanh())
        return result


def trained(name: str, rank: int, processes: int) -> dict[str, Tensor]:
    """Gradients and buffers after some steps on samples ``rank``, ``rank + processes``, ... of each batch."""
    torch.manual_seed(7)
    model = Model(NORMS[name]())
    trained_model = DistributedDataParallel(model) if processes > 1 else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(_STEPS):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(4, 5, 4, generator=generator, dtype=torch.float64)
        # As many real tokens in one half of the samples as in the other would hide a mean of means.
        mask = torch.arange(5).expand(4, 5) >= torch.tensor([[5], [2], [4], [1]])
        optimizer.zero_grad()
        trained_model(x[rank::processes], mask[rank::processes]).square().mean().backward()
        optimizer.step()
    gradients = {f"{key}.grad": value.grad for key, value in model.named_parameters() if value.grad is not None}
    return gradients | dict(model.named_buffers())


def main(folder: Path, rank: int, processes: int) -> None:
    """Train every norm as one process of several; rank 0 writes what came of it."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=(folder / "meeting").as_uri(), rank=rank, world_size=processes)
    results = {name: trained(name, rank, processes) for name in NORMS}
    torch.save(results, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
