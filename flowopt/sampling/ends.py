"""What a sampler computes once: before its loop, and behind it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from flowopt.sampling.guidance import ClassifierFree
from flowopt.sampling.realization import Realization
from flowopt.sampling.step import noise_names, state_names

NOISE, DRAWS, SAMPLE = "noise", "draws", "sample"
UNCONDITIONAL = "unconditional_"


@final
@dataclass(frozen=True, slots=True, eq=False)
class Prologue:
    """The first state, the noise of each step, and conditions of both halves of a guided batch, [2, batch, ...]."""

    loop: Realization
    guidance: ClassifierFree | None
    doubled: tuple[str, ...]

    def __call__(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        noise = values[NOISE]
        found: dict[str, Tensor] = {}
        for k, name in enumerate(state_names(self.loop.rank)):
            state = _scaled(noise, float(self.loop.start[k]))
            for j, draw in enumerate(self.loop.start_draws):
                state = state + values[DRAWS][draw] * float(self.loop.start_noise[k, j])
            found[name] = state
        for j, name in enumerate(noise_names(self.loop)):
            order = [draws[j] for draws in self.loop.step_draws]
            # A gather, unless the draws come in the order of the steps.
            is_in_order = order == list(range(values[DRAWS].shape[0]))
            found[name] = values[DRAWS] if is_in_order else values[DRAWS][torch.tensor(order)]
        for name in self.doubled:
            found[name] = self._both(name, values)
        return found

    def _both(self, name: str, values: Mapping[str, Tensor]) -> Tensor:
        assert self.guidance is not None, "only a guided batch has two halves"
        given, fill = values[name], self.guidance.unconditional.get(name)
        without = torch.full_like(given, fill) if fill is not None else values[UNCONDITIONAL + name]
        return torch.stack([without, given] if self.guidance.order == "unconditional-first" else [given, without])


@final
@dataclass(frozen=True, slots=True)
class Epilogue:
    """The sample: what the loop ends with, scaled, shifted and clamped as asked.

    Attributes:
        scale: such as 1 / the scaling factor of an autoencoder's latents.
        shift: added behind it.
        clamp: the smallest and largest number, behind both.
    """

    scale: float = 1.0
    shift: float = 0.0
    clamp: tuple[float, float] | None = None

    def __call__(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        (sample,) = values.values()
        if self.scale != 1.0:
            sample = sample * self.scale
        if self.shift != 0.0:
            sample = sample + self.shift
        return {SAMPLE: sample if self.clamp is None else sample.clamp(*self.clamp)}


def _scaled(noise: Tensor, factor: float) -> Tensor:
    if factor == 1.0:
        return noise
    return torch.zeros_like(noise) if factor == 0.0 else noise * factor
