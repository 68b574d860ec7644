"""The input cases of level ``quick``."""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial

import torch
from torch import Generator, Tensor

from flowopt.analysis.input_roles import Kind
from flowopt.program.program import Dim, Program
from flowopt.verification.inputs import regimes
from flowopt.verification.inputs.case import Case
from flowopt.verification.inputs.case_sizes import primes, within
from flowopt.verification.inputs.first_float import first_float
from flowopt.verification.inputs.recipe import Recipe, free_roles, made

__all__ = ["Case", "case_of", "quick_cases", "quick_recipes"]


def quick_cases(program: Program, seed: int) -> tuple[Case, ...]:
    """Four named cases; a fifth where the model reads integers only.

    ``traced`` (captured sizes, normal), ``smallest`` (every dimension at its minimum, negative numbers, edge ids),
    ``prime`` (odd and distinct sizes, rows of mixed scale), ``special`` (batch 2 and captured size plus one, spikes,
    a NaN and an infinity), and ``injected``: the sizes of ``special`` with those numbers in the place of the first
    float tensor.
    """
    return tuple(made(program, recipe, seed) for recipe in quick_recipes(program))


def quick_recipes(program: Program) -> tuple[Recipe, ...]:
    """What the cases of level ``quick`` are made of."""
    plans = (
        ("traced", {d.name: d.traced for d in program.dims}, regimes.normal),
        ("smallest", {d.name: d.minimum for d in program.dims}, regimes.negative),
        ("prime", primes(program.dims), regimes.mixed_rows),
        ("special", _neighbours(program.dims), regimes.spikes),
    )
    recipes = [_recipe(name, sizes, regime) for name, sizes, regime in plans]
    has_features = any(role.kind is Kind.FEATURES for role in free_roles(program).values())
    if not has_features and first_float(program) is not None:
        special = _recipe("special", _neighbours(program.dims), regimes.spikes)
        recipes.append(replace(special, name="injected", injects=True))
    return tuple(recipes)


def case_of(program: Program, name: str, sizes: dict[str, int], regime: regimes.Regime, seed: int) -> Case:
    """One case: features in a regime, ids and masks by the case's name, state as stored in the case ``traced``.

    Args:
        program: whose inputs are made.
        name: of the case; ``smallest``, ``prime`` and ``special`` have ids and masks of their own.
        sizes: every free dimension by name.
        regime: of floating features.
        seed: of the values.
    """
    return made(program, _recipe(name, sizes, regime), seed)


def _recipe(name: str, sizes: dict[str, int], regime: regimes.Regime) -> Recipe:
    recipe = Recipe(
        name,
        sizes,
        regime=getattr(regime, "__name__", "other").replace("_", "-"),
        fill=partial(_plain, regime),
        keeps_state=name == "traced",
        is_natural=regime is regimes.normal,
    )
    if name == "smallest":
        return replace(recipe, indices="edges", integers="edges", mask="ones")
    if name == "prime":
        return replace(recipe, mask="left-padded")
    if name == "special":
        return replace(recipe, indices="edges", mask="every-other-keeps-one")
    return recipe


def _plain(
    regime: regimes.Regime, shape: tuple[int, ...], generator: Generator, dtype: torch.dtype, filled: int
) -> Tensor:
    made = regime(shape, generator)
    if dtype is torch.float16:
        # Rows of a million would be infinite from the start, and every output out of scope.
        limit = torch.finfo(dtype).max / 32
        made = torch.where(made.isinf(), made, made.clamp(-limit, limit))
    return made.to(dtype)


def _neighbours(dims: Iterable[Dim]) -> dict[str, int]:
    return {d.name: within(d, 2 if i == 0 else d.traced + 1) for i, d in enumerate(dims)}
