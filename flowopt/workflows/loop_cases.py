"""Batches that a folded sampler is verified on."""

import torch
from torch import Generator, Tensor

from flowopt.program.program import Program
from flowopt.program.sampler_program import SamplerProgram
from flowopt.sampling.ends import DRAWS, NOISE, UNCONDITIONAL
from flowopt.sampling.roles import Roles
from flowopt.sampling.step import SCALE_INPUT
from flowopt.verification.inputs import regimes
from flowopt.verification.inputs.case import Case
from flowopt.verification.inputs.case_sizes import primes
from flowopt.verification.inputs.cases import case_of
from flowopt.verification.levels import Level

# Far from 1, where guidance does nothing.
_SCALE = 2.5


def loop_cases(program: Program, roles: Roles, folded: SamplerProgram, *, level: Level, seed: int) -> tuple[Case, ...]:
    """Unit noise, random conditions: at captured sizes, at the smallest, and at distinct primes where it matters."""
    dims = folded.prologue.dims
    sizes = {
        "traced": {d.name: d.traced for d in dims},
        "smallest": {d.name: d.minimum for d in dims},
    }
    # Sizes that are equal everywhere hide what depends on two of them.
    if level == "full" or len(dims) > 1:
        sizes["prime"] = primes(dims)
    return tuple(_case(program, roles, folded, name, one, seed) for name, one in sizes.items())


def _case(program: Program, roles: Roles, folded: SamplerProgram, name: str, sizes: dict[str, int], seed: int) -> Case:
    known = {d.name: d.traced for d in program.dims} | sizes
    given = case_of(program, name, known, regimes.normal, seed).inputs
    # Whatever stands for "no condition", it is another one.
    other = case_of(program, name, known, regimes.normal, seed + 1).inputs
    conditions = {n: given[n] for n in roles.conditions} | {UNCONDITIONAL + n: other[n] for n in roles.conditions}
    generator = Generator().manual_seed(seed)
    inputs: dict[str, Tensor] = {}
    for spec in folded.interface.inputs:
        shape = tuple(size if isinstance(size, int) else sizes[size] for size in spec.shape)
        if spec.name in (NOISE, DRAWS):
            inputs[spec.name] = torch.randn(shape, generator=generator).to(spec.dtype)
        elif spec.name == SCALE_INPUT:
            inputs[spec.name] = torch.tensor(_SCALE, dtype=spec.dtype)
        else:
            inputs[spec.name] = conditions[spec.name]
    return Case(name, sizes, inputs)
