"""What the inputs of a case are made of, and how they are made."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from flowopt.analysis.input_roles import Kind, Role, input_role
from flowopt.ir.metadata import recorded_tensor
from flowopt.program.program import Program
from flowopt.verification.inputs.case import Case
from flowopt.verification.inputs.first_float import first_float
from flowopt.verification.inputs.integers import IntegerPattern, integers
from flowopt.verification.inputs.masks import MaskPattern, visible_positions

Fill = Callable[[tuple[int, ...], Generator, torch.dtype, int], Tensor]
"""Floating numbers of a shape and dtype; the last argument counts the inputs that the case has filled so far."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Name, sizes and kinds of values of a case.

    Attributes:
        name: of the case.
        sizes: every free dimension by name.
        regime: name of the kind of floating numbers.
        fill: makes them.
        indices: pattern of inputs that index a table.
        integers: pattern of other integers.
        named: what the pattern ``named`` takes.
        mask: pattern of masks, additive ones included.
        hidden: what an additive mask adds to a hidden position; None: what it adds in the example.
        keeps_state: state is as stored, rather than as after some calls.
        injects: the regime takes the place of the first float tensor.
        is_natural: as of the case.
    """

    name: str
    sizes: dict[str, int]
    regime: str
    fill: Fill
    indices: IntegerPattern = "random"
    integers: IntegerPattern = "random"
    named: tuple[int, ...] = ()
    mask: MaskPattern = "right-padded"
    hidden: float | None = None
    keeps_state: bool = False
    injects: bool = False
    is_natural: bool = False


def made(program: Program, recipe: Recipe, seed: int) -> Case:
    """The case of a recipe."""
    roles = free_roles(program)
    generator = torch.Generator().manual_seed(seed)
    inputs: dict[str, Tensor] = {}
    filled = 0
    for one in program.inputs:
        if one.state is not None:
            stored = program.tensors[one.state]
            inputs[one.name] = stored if recipe.keeps_state else _used(stored, generator)
            continue
        value = recorded_tensor(program.node(one.name))
        assert value is not None
        shape = program.concrete_shape(value, recipe.sizes)
        if roles[one.name].kind is Kind.FEATURES:
            inputs[one.name] = recipe.fill(shape, generator, one.dtype, filled)
            filled += 1
        else:
            example = program.example.get(one.name)
            inputs[one.name] = _discrete(recipe, roles[one.name], shape, generator, example, one.dtype).to(one.dtype)
    overrides = _injected(program, recipe, seed + 1) if recipe.injects else {}
    return Case(recipe.name, recipe.sizes, inputs, overrides, recipe.regime, recipe.is_natural)


def free_roles(program: Program) -> dict[str, Role]:
    """Role of every input that is not state."""
    free = (i.name for i in program.inputs if i.state is None)
    return {name: input_role(program.node(name), program.example.get(name)) for name in free}


def _used(state: Tensor, generator: Generator) -> Tensor:
    """State as it may be after some calls: what is empty is filled, other numbers move by up to a half."""
    if not state.is_floating_point():
        return state
    if not bool(state.any()):
        return torch.randn(state.shape, generator=generator).to(state.dtype)
    return state * (0.5 + torch.rand(state.shape, generator=generator)).to(state.dtype)


def _discrete(
    recipe: Recipe,
    role: Role,
    shape: tuple[int, ...],
    generator: Generator,
    example: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    if role.kind is Kind.MASK:
        mask = visible_positions(recipe.mask, shape, generator)
        return 1 - mask if _ones_hide(example) else mask
    if role.kind is Kind.ADDITIVE_MASK:
        visible = visible_positions(recipe.mask, shape, generator) > 0
        score = hidden_score(example) if recipe.hidden is None else _inside(recipe.hidden, dtype)
        return torch.where(visible, 0.0, torch.full((), score, dtype=dtype))
    pattern = recipe.indices if role.kind is Kind.INDICES else recipe.integers
    return integers(pattern, role, shape, generator, named=recipe.named, dtype=dtype)


def hidden_score(example: Tensor | None) -> float:
    """What an additive mask adds to a hidden position, by its example."""
    return torch.finfo(torch.float32).min if example is None else float(example.min())


def _inside(score: float, dtype: torch.dtype) -> float:
    return score if score == -torch.inf else max(score, torch.finfo(dtype).min)


def _ones_hide(example: Tensor | None) -> bool:
    """True when the example hides nothing with zeros: ``key_padding_mask`` counts that way."""
    if example is None or example.numel() == 0:
        return False
    rows = example.reshape(-1, example.shape[-1]) if example.dim() else example.reshape(1, 1)
    return bool((rows == 0).all(-1).any()) and not bool((rows != 0).all(-1).any())


def _injected(program: Program, recipe: Recipe, seed: int) -> dict[str, Tensor]:
    node = first_float(program)
    value = recorded_tensor(node)
    if node is None or value is None:
        return {}
    generator = torch.Generator().manual_seed(seed)
    shape = program.concrete_shape(value, recipe.sizes)
    return {node.name: recipe.fill(shape, generator, value.dtype, 0)}
