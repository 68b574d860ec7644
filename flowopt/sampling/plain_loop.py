"""The network itself in a plain Python loop: what a folded sampler is compared with."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from flowopt.program.program import Program
from flowopt.sampling.ends import DRAWS, NOISE, UNCONDITIONAL, Epilogue
from flowopt.sampling.guidance import ClassifierFree
from flowopt.sampling.roles import Roles
from flowopt.sampling.spec import SamplerSpec
from flowopt.sampling.step import SCALE_INPUT


@final
@dataclass(frozen=True, slots=True, eq=False)
class PlainLoop:
    """A sampler around a network as it was captured: by the table, without tables of times and without a state.

    Guided, the network runs once with and once without the condition.
    """

    program: Program
    roles: Roles
    spec: SamplerSpec
    guidance: ClassifierFree | None
    output: Epilogue

    def run(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The sample for a folded sampler's inputs; in float64 for a program that is a float64 twin."""
        noise = self._raised(inputs[NOISE])
        draws = [self._raised(draw) for draw in inputs[DRAWS]] if self.spec.draws else []
        outputs: list[Tensor] = []
        count = self.spec.evaluations
        for number in range(count):
            outputs.append(self._predicted(self._row(number, noise, outputs, draws), number, inputs))
        return self.output({"state": self._row(count, noise, outputs, draws)})["sample"]

    def _row(self, number: int, noise: Tensor, outputs: list[Tensor], draws: list[Tensor]) -> Tensor:
        row = self.spec.table[number]
        drawn = row[1 + self.spec.evaluations :]
        total = noise * float(row[0])
        for factor, value in [*zip(row[1:], outputs, strict=False), *zip(drawn, draws, strict=True)]:
            if factor != 0.0:
                total = total + value * float(factor)
        return total

    def _predicted(self, sample: Tensor, number: int, inputs: Mapping[str, Tensor]) -> Tensor:
        conditions = {name: inputs[name] for name in self.roles.conditions}
        given = self._network(sample, number, conditions)
        guidance = self.guidance
        if guidance is None:
            return given
        for name, value in conditions.items():
            if name in guidance.unconditional:
                conditions[name] = torch.full_like(value, guidance.unconditional[name])
            elif UNCONDITIONAL + name in inputs:
                conditions[name] = inputs[UNCONDITIONAL + name]
        without = self._network(sample, number, conditions)
        scales = guidance.scales(self.spec.evaluations)
        scale = inputs[SCALE_INPUT] if scales is None else scales[number]
        start = without if guidance.difference == "from-unconditional" else given
        moved = start + (given - without) * scale
        if guidance.channels is None:
            return moved
        return torch.cat([moved[:, : guidance.channels], given[:, guidance.channels :]], dim=1)

    def _network(self, sample: Tensor, number: int, conditions: Mapping[str, Tensor]) -> Tensor:
        dtypes = {i.name: i.dtype for i in self.program.inputs}
        values = {self.roles.sample: sample.to(self._dtype(dtypes[self.roles.sample]))}
        for name, time in zip(self.roles.times, self.spec.times[number], strict=True):
            shape = [size if isinstance(size, int) else sample.shape[0] for size in self.program.shape(name)]
            exact = torch.full(shape, time, dtype=torch.float64)
            values[name] = self._raised(exact.to(dtypes[name]))
        for name, value in conditions.items():
            values[name] = self._raised(value)
        found = self.program.run_named(values)[self.roles.prediction].to(sample.dtype)
        return found[:, : sample.shape[1]] if self.roles.is_doubled else found

    def _dtype(self, dtype: torch.dtype) -> torch.dtype:
        return torch.float64 if self.program.raised and dtype.is_floating_point else dtype

    def _raised(self, value: Tensor) -> Tensor:
        return value.to(self._dtype(value.dtype))
