"""One step of a sampler: the network, guidance, and the next state."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import numpy
import torch
from torch import Tensor

from flowopt.sampling.guidance import ClassifierFree
from flowopt.sampling.network import Network
from flowopt.sampling.realization import Realization

SCALE_INPUT = "guidance_scale"


def state_names(rank: int) -> tuple[str, ...]:
    """Names of the tensors that the loop carries; the first is the network's next input."""
    return tuple(f"state_{k}" for k in range(rank))


def noise_names(loop: Realization) -> tuple[str, ...]:
    """Names of the noise tensors that a step gets."""
    return tuple(f"noise_{j}" for j in range(loop.noise_gain.shape[2]))


@final
@dataclass(frozen=True, slots=True, eq=False)
class Coefficients:
    """Numbers that a step multiplies with: literal where all steps have the same, else rows of tables.

    Attributes:
        literal: name to number.
        tables: name to its numbers, [steps], float32 (float64 for a network in float64).
        exact: the same in float64.
    """

    literal: Mapping[str, float]
    tables: Mapping[str, Tensor]
    exact: Mapping[str, Tensor]

    def times(self, name: str, value: Tensor, rows: Mapping[str, Tensor]) -> Tensor | None:
        """The product, without an operator where the number is 1; None where it is 0 in all steps."""
        if name not in self.literal:
            return value * rows[name]
        number = self.literal[name]
        if number == 0.0:
            return None
        return value if number == 1.0 else value * number


def coefficients(loop: Realization, scales: tuple[float, ...] | None, dtype: torch.dtype) -> Coefficients:
    """All numbers of a loop by name: ``carry_k_j``, ``gain_k``, ``noise_gain_k_j`` and ``guidance_scale``."""
    rank, width = loop.rank, loop.noise_gain.shape[2]
    values = {f"carry_{k}_{j}": loop.carry[:, k, j] for k in range(rank) for j in range(rank)}
    values |= {f"gain_{k}": loop.gain[:, k] for k in range(rank)}
    values |= {f"noise_gain_{k}_{j}": loop.noise_gain[:, k, j] for k in range(rank) for j in range(width)}
    values |= {} if scales is None else {SCALE_INPUT: numpy.array(scales)}
    literal: dict[str, float] = {}
    tables: dict[str, Tensor] = {}
    exact: dict[str, Tensor] = {}
    for name, numbers in values.items():
        stored = torch.tensor(numbers, dtype=dtype)
        if bool((stored == stored[0]).all()):
            literal[name] = float(numbers[0])
        else:
            tables[name], exact[name] = stored, torch.tensor(numbers, dtype=torch.float64)
    return Coefficients(literal, tables, exact)


@final
@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """The function of one step: from state, rows, noise and conditions to the next state.

    Attributes:
        doubled: conditions that come as [2, batch, ...].
    """

    network: Network
    loop: Realization
    numbers: Coefficients
    guidance: ClassifierFree | None
    doubled: tuple[str, ...]

    def __call__(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        names = state_names(self.loop.rank)
        state = [values[name] for name in names]
        output = self._guided(state[0], values).to(state[0].dtype)
        noises = [values[name] for name in noise_names(self.loop)]
        following = {}
        for k, name in enumerate(names):
            terms = [self.numbers.times(f"carry_{k}_{j}", s, values) for j, s in enumerate(state)]
            terms += [self.numbers.times(f"gain_{k}", output, values)]
            terms += [self.numbers.times(f"noise_gain_{k}_{j}", n, values) for j, n in enumerate(noises)]
            following[f"{name}.next"] = _sum([t for t in terms if t is not None], state[0])
        return following

    def _guided(self, sample: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        guidance = self.guidance
        if guidance is None:
            return self.network.predict(sample, values)
        batch = sample.shape[0]
        flat = {name: values[name].flatten(0, 1) for name in self.doubled if name in values}
        both = self.network.predict(torch.cat([sample, sample]), {**values, **flat})
        first, second = both[:batch], both[batch:]
        without, given = (first, second) if guidance.order == "unconditional-first" else (second, first)
        if guidance.channels is None or guidance.channels >= sample.shape[1]:
            return self._moved(without, given, values)
        kept = guidance.channels
        return torch.cat([self._moved(without[:, :kept], given[:, :kept], values), given[:, kept:]], dim=1)

    def _moved(self, without: Tensor, given: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        assert self.guidance is not None, "only guided outputs are moved"
        start = without if self.guidance.difference == "from-unconditional" else given
        difference = given - without
        if SCALE_INPUT in self.numbers.literal or SCALE_INPUT in self.numbers.tables:
            moved = self.numbers.times(SCALE_INPUT, difference, values)
        else:
            moved = difference * values[SCALE_INPUT]
        return start if moved is None else start + moved


def _sum(terms: list[Tensor], like: Tensor) -> Tensor:
    if not terms:
        return torch.zeros_like(like)
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
