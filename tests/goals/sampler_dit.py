"""The network of the rows that measure seconds: a DiT of 6 layers of width 128 on 16 tokens, random weights."""

from typing import Any

import torch
from torch import Tensor, nn

import flowopt
from flowopt.program.program import Program
from flowopt.sampling import SamplerSpec, probe_scheduler
from tests.zoo.randomise import randomise

_LABELS, _LAYERS, _HEADS, _SIZE = 10, 6, 4, 8


class Dit(nn.Module):
    """Inputs by name; the learned variance is dropped as the pipeline does."""

    def __init__(self) -> None:
        from diffusers import DiTTransformer2DModel

        super().__init__()
        self.model = DiTTransformer2DModel(
            num_attention_heads=_HEADS, attention_head_dim=128 // _HEADS, in_channels=4, out_channels=8,
            num_layers=_LAYERS, sample_size=_SIZE, patch_size=2, num_embeds_ada_norm=_LABELS,
        )  # fmt: skip
        randomise(self, 61)
        self.eval()

    def forward(self, sample: Tensor, timestep: Tensor, label: Tensor) -> Tensor:
        output: Tensor = self.model(sample, timestep=timestep, class_labels=label, return_dict=False)[0]
        return output[:, : sample.shape[1]]


def examples(batch: int) -> dict[str, Tensor]:
    """Inputs of the network."""
    generator = torch.Generator().manual_seed(2)
    return {
        "sample": torch.randn(batch, 4, _SIZE, _SIZE, generator=generator),
        "timestep": torch.full((batch,), 421.0),
        "label": torch.arange(batch) % _LABELS,
    }


def program() -> Program:
    """The network, its batch free."""
    kwargs = examples(3)
    return flowopt.capture(Dit(), (), kwargs, dynamic={name: {0: "batch"} for name in kwargs}, dims={"batch": (1, 16)})


def scheduler() -> Any:
    """DDIM, as DiTPipeline has it."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(clip_sample=False)


def spec(steps: int) -> SamplerSpec:
    """Its table."""
    return probe_scheduler(scheduler(), steps)
