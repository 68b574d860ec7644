"""Inputs to measure with: ordinary numbers, valid ids, nothing hidden by a mask."""

from collections.abc import Mapping, Sequence

import torch
from torch import Generator, Tensor

from flowopt.analysis.input_roles import Kind, Role, input_role
from flowopt.errors import UserError
from flowopt.ir.metadata import recorded_tensor
from flowopt.program.interface import TensorSpec
from flowopt.program.program import Program


def inputs_of_program(program: Program, sizes: Mapping[str, int], *, seed: int = 0) -> dict[str, Tensor]:
    """Inputs at given sizes, state as stored.

    Args:
        program: whose graph says which integers are ids, and of how many.
        sizes: every free dimension by name.
        seed: of the numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    made: dict[str, Tensor] = {}
    for one in program.inputs:
        if one.state is not None:
            made[one.name] = program.tensors[one.state]
            continue
        node = program.node(one.name)
        value = recorded_tensor(node)
        assert value is not None, "every placeholder has a recorded value"
        role = input_role(node, program.example.get(one.name))
        made[one.name] = _filled(program.concrete_shape(value, sizes), one.dtype, role, generator)
    return made


def inputs_of_specs(specs: Sequence[TensorSpec], sizes: Mapping[str, int], *, seed: int = 0) -> dict[str, Tensor]:
    """Inputs of an artifact whose reference is not at hand: integers are ones.

    Raises:
        UserError: a size that is an expression of others.
    """
    generator = torch.Generator().manual_seed(seed)
    made: dict[str, Tensor] = {}
    for one in specs:
        if one.state is not None:
            continue
        unknown = [size for size in one.shape if isinstance(size, str) and size not in sizes]
        if unknown:
            raise UserError(
                f"input {one.name!r} has size {unknown[0]!r}", hint="give --reference MODEL, which knows it"
            )
        shape = tuple(sizes[size] if isinstance(size, str) else size for size in one.shape)
        made[one.name] = _filled(shape, one.dtype, Role(Kind.INTEGERS, 1, 2), generator)
    return made


def _filled(shape: tuple[int, ...], dtype: torch.dtype, role: Role, generator: Generator) -> Tensor:
    if role.kind is Kind.ADDITIVE_MASK:
        return torch.zeros(shape, dtype=dtype)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    if role.kind is Kind.MASK or dtype is torch.bool or dtype.is_complex:
        return torch.ones(shape, dtype=dtype)
    return torch.randint(role.low, role.high, shape, generator=generator).to(dtype)
