"""The input cases of level ``full``: numbers, ids, masks and sizes that wrong rewrites were seen to survive without."""

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Final, final

import torch
from torch import Generator, Tensor

from flowopt.analysis.graph_numbers import GraphNumbers, graph_numbers
from flowopt.analysis.input_roles import Kind
from flowopt.program.program import Program
from flowopt.verification.inputs.batch_samples import sample_plans
from flowopt.verification.inputs.case import Case
from flowopt.verification.inputs.case_plan import CasePlan
from flowopt.verification.inputs.case_sizes import longest, longest_cases, named_sizes, size_cases, small_odd, within
from flowopt.verification.inputs.cases import quick_recipes
from flowopt.verification.inputs.chained import chained_plans
from flowopt.verification.inputs.first_float import first_float
from flowopt.verification.inputs.integers import IntegerPattern
from flowopt.verification.inputs.masks import ORDINARY_MASKS
from flowopt.verification.inputs.numbers import named_recipes, near_stored_rows, roomy, stored_rows
from flowopt.verification.inputs.recipe import Recipe, free_roles, hidden_score, made
from flowopt.verification.inputs.regimes import fitted, regimes_of

REGIMES: Final = tuple(regimes_of(torch.float32))
"""Names of the regimes of level ``full``, ordinary numbers first."""

_JOINT_MAXIMUM: Final = "joint-maximum"
_NO_NUMBERS: Final = GraphNumbers()
# These need no case of their own where sizes vary. Both they and their sizes are seen by all that is not special.
_REGIMES_OF_SIZES: Final = {"two": "uniform", "odd": "wide-rows", "above": "outliers"}
_NATURAL: Final = ("normal", "uniform")
# Regimes that hide nothing of a mask's effect.
_PLAIN: Final = (*_NATURAL, "wide-rows", "outliers", "mixed-rows", "negative")
_IDS: Final[dict[str, IntegerPattern]] = {
    "ids-zero": "lowest",
    "ids-last": "highest",
    "ids-edges": "edges",
    "ids-padded": "padded",
}
# What models add to a hidden score; the lowest is that of the input's own dtype.
_HIDDEN: Final = {
    "hidden-minus-10000": -1e4,
    "hidden-lowest": torch.finfo(torch.float64).min,
    "hidden-minus-infinity": -torch.inf,
}


def full_cases(program: Program, seed: int, also: GraphNumbers = _NO_NUMBERS) -> tuple[Case, ...]:
    """The whole battery, the cases of level ``quick`` first and the joint maximum of all dimensions last.

    Sizes: every free dimension takes 1 (or its minimum), 2, an odd size, a prime, its traced size and those beside it,
    and its maximum with the others small. Numbers: every regime of ``regimes_of``, at the inputs, or, where the model
    reads integers only, in the place of its first float tensor. Ids at the edges of their tables and of padding; masks
    of every pattern, with one row hidden, and with other scores than the example's; integers that index nothing beyond
    the example's range. Numbers that the graph names, and those beside them and half-way between their multiples. The
    same row at every place of the longest dimensions. ``solo`` and ``permuted`` hold samples of ``prime``, ``chained``
    the state after some calls. What a model has no inputs or dimensions for, and what would repeat, is left out.

    Args:
        program: whose inputs are made.
        seed: of the values; with the name of a case it decides all of them.
        also: numbers that count beside those of the program: what a candidate names, it may get wrong.
    """
    return tuple(plan.make() for plan in planned_cases(program, seed, also))


def planned_cases(program: Program, seed: int, also: GraphNumbers = _NO_NUMBERS) -> tuple[CasePlan, ...]:
    """The battery before any input is allocated: names and sizes."""
    quick = quick_recipes(program)
    plans = [CasePlan(r.name, r.sizes, partial(made, program, r, seed)) for r in quick]
    prime = next(plan for plan in plans if plan.name == "prime")
    battery = _Battery(program, graph_numbers(program.graph, program.tensors) | also, quick)
    plans += [_planned(program, recipe, seed) for recipe in battery.small()]
    plans += sample_plans(program, prime)
    plans += chained_plans(program, quick[0], seed)
    plans += [_planned(program, recipe, seed) for recipe in battery.longest()]
    return tuple(plans)


def _planned(program: Program, recipe: Recipe, seed: int) -> CasePlan:
    own_seed = zlib.crc32(f"{seed}/{recipe.name}".encode())
    return CasePlan(recipe.name, recipe.sizes, partial(made, program, recipe, own_seed))


@final
class _Battery:
    """Recipes beyond those of level ``quick``, for what a program reads."""

    def __init__(self, program: Program, numbers: GraphNumbers, quick: Iterable[Recipe]) -> None:
        roles = free_roles(program)
        self._dims = program.dims
        self._program, self._numbers = program, numbers
        self._stored_rows = stored_rows(program)
        self._kinds = {role.kind for role in roles.values()}
        self._has_wide = any(role.kind is Kind.INTEGERS and not role.is_index for role in roles.values())
        self._injects = Kind.FEATURES not in self._kinds and first_float(program) is not None
        self._scores = {
            _rounded(hidden_score(program.example.get(one.name)), one.dtype): one.dtype
            for one in program.inputs
            if one.state is None and roles[one.name].kind is Kind.ADDITIVE_MASK
        }
        self._recipes = list(quick)

    def small(self) -> list[Recipe]:
        """All but the longest."""
        first = len(self._recipes)
        for group in (self._sizes, self._regimes, self._integers, self._named, self._stored, self._masks):
            for recipe in group():
                self._add(recipe)
        return self._recipes[first:]

    def longest(self) -> list[Recipe]:
        """Every dimension at its maximum, then all of them."""
        first = len(self._recipes)
        for name, sizes in longest_cases(self._dims):
            if name == _JOINT_MAXIMUM:
                self._alike()
            self._add(self._recipe(name, sizes))
        return self._recipes[first:]

    def _sizes(self) -> Iterator[Recipe]:
        for name, sizes in (*size_cases(self._dims), *named_sizes(self._dims, self._numbers.sizes)):
            yield self._recipe(name, sizes, _REGIMES_OF_SIZES.get(name, "normal"))

    def _regimes(self) -> Iterator[Recipe]:
        if Kind.FEATURES not in self._kinds and not self._injects:
            return
        seen = {recipe.regime for recipe in self._recipes if recipe.name in _REGIMES_OF_SIZES}
        for regime in REGIMES[1:]:
            if regime not in seen:
                yield self._recipe(regime, self._small_odd(), regime)

    def _integers(self) -> Iterator[Recipe]:
        if Kind.INDICES in self._kinds:
            for name, pattern in _IDS.items():
                recipe = self._recipe(name, self._small_odd())
                recipe = replace(recipe, indices=pattern, is_natural=False)
                if pattern == "edges":
                    recipe = replace(recipe, integers=pattern)
                yield replace(recipe, mask="right-padded") if pattern == "padded" else recipe
        elif Kind.INTEGERS in self._kinds:
            yield replace(self._recipe("integers-edges", self._small_odd()), integers="edges", is_natural=False)
        if self._has_wide:
            yield replace(self._recipe("integers-wide", roomy(self._dims)), integers="wide", is_natural=False)

    def _named(self) -> Iterator[Recipe]:
        """Numbers that the graph itself names."""
        yield from named_recipes(self._program, self._numbers, self._recipe("named", {}))

    def _stored(self) -> Iterator[Recipe]:
        """Rows that the model itself stores: a table of prototypes is for numbers that are close to them."""
        if self._stored_rows:
            recipe = self._recipe("stored-rows", self._small_odd())
            fill = partial(near_stored_rows, self._stored_rows)
            yield replace(recipe, regime="stored-rows", fill=fill, is_natural=False)

    def _alike(self) -> None:
        """A capacity, or a count, is reached where every place of a long row asks for the same."""
        for dim in self._dims[1:]:
            sizes = {d.name: longest(d) if d is dim else within(d, 2) for d in self._dims}
            recipe = self._recipe(f"alike-{dim.name}", sizes)
            if self._kinds & {Kind.FEATURES, Kind.INDICES}:
                fill = _alike_rows if Kind.FEATURES in self._kinds else recipe.fill
                self._add(replace(recipe, regime="alike-rows", fill=fill, indices="alike", is_natural=False))

    def _masks(self) -> Iterator[Recipe]:
        if not self._kinds & {Kind.MASK, Kind.ADDITIVE_MASK}:
            return
        seen = {recipe.mask for recipe in self._recipes if recipe.regime in _PLAIN}
        for pattern in ORDINARY_MASKS:
            if pattern not in seen:
                yield replace(self._recipe(f"mask-{pattern}", self._small_odd()), mask=pattern)
        hidden = self._recipe("masked-row", self._small_odd())
        yield replace(hidden, mask="one-row-hidden", is_natural=False)
        for name, score in _HIDDEN.items():
            if any(_rounded(score, dtype) != own for own, dtype in self._scores.items()):
                recipe = self._recipe(name, self._small_odd())
                yield replace(recipe, hidden=score, mask="holes", is_natural=False)

    def _recipe(self, name: str, sizes: dict[str, int], regime: str = "normal") -> Recipe:
        injects = self._injects and regime != "normal"
        return Recipe(
            name,
            sizes,
            regime if injects or Kind.FEATURES in self._kinds else "normal",
            fill=partial(_filled, regime),
            # Masks take turns, so that none of their patterns meets always the same numbers.
            mask=ORDINARY_MASKS[len(self._recipes) % len(ORDINARY_MASKS)],
            injects=injects,
            is_natural=regime in _NATURAL and not injects,
        )

    def _small_odd(self) -> dict[str, int]:
        return small_odd(self._dims, turn=len(self._recipes))

    def _add(self, recipe: Recipe) -> None:
        if all(self._content(recipe) != self._content(other) for other in self._recipes):
            self._recipes.append(recipe)

    def _content(self, recipe: Recipe) -> tuple[object, ...]:
        """What of a recipe reaches the program: two with the same content differ in random numbers alone."""
        has_mask = bool(self._kinds & {Kind.MASK, Kind.ADDITIVE_MASK})
        return (
            recipe.sizes,
            recipe.regime if recipe.injects or Kind.FEATURES in self._kinds else None,
            recipe.injects,
            recipe.indices if Kind.INDICES in self._kinds else None,
            recipe.integers if Kind.INTEGERS in self._kinds else None,
            recipe.mask if has_mask else None,
            recipe.hidden,
        )


def _filled(regime: str, shape: tuple[int, ...], generator: Generator, dtype: torch.dtype, filled: int) -> Tensor:
    made = fitted(regime, shape, generator, dtype)
    # Two inputs must not have their zeros, scales and NaN in the same places: one would hide the other.
    return made.roll(filled, 0) if filled and made.dim() else made


def _alike_rows(shape: tuple[int, ...], generator: Generator, dtype: torch.dtype, filled: int) -> Tensor:
    return torch.randn(shape[-1:], generator=generator).expand(shape).clone().to(dtype)


def _rounded(score: float, dtype: torch.dtype) -> float:
    return score if score == -torch.inf else max(float(torch.tensor(score, dtype=dtype)), torch.finfo(dtype).min)
