"""Numbers out of the model itself: those that its graph names, and rows of what it stores."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

import torch
from torch import Generator, Tensor

from flowopt.analysis.graph_numbers import GraphNumbers
from flowopt.analysis.input_roles import Kind
from flowopt.ir.metadata import recorded_tensor
from flowopt.program.program import Dim, Program
from flowopt.verification.inputs.case_plan import CasePlan
from flowopt.verification.inputs.case_sizes import named_sizes, within
from flowopt.verification.inputs.integers import mixed_with
from flowopt.verification.inputs.recipe import Recipe, free_roles, made

_LARGEST_NAMED: Final = 1e6
# Room for all numbers of a graph that is not made of numbers.
_ROWS, _PLACES = 4, 33
_BESIDE: Final = 2.0**-6
_MOST_ROWS: Final = 4096
_MOST_TABLES: Final = 4


def named_recipes(program: Program, numbers: GraphNumbers, like: Recipe) -> Iterator[Recipe]:
    """Recipes of the numbers that a graph names, where the program has inputs for them.

    Args:
        program: whose inputs are made.
        numbers: of its graph, or of another one.
        like: its name, and all that is no matter of numbers.
    """
    kinds = {role.kind for role in free_roles(program).values()}
    floats = numbers.floats if Kind.FEATURES in kinds else ()
    integers = numbers.integers if kinds & {Kind.INDICES, Kind.INTEGERS} else ()
    if not floats and not integers:
        return
    recipe = replace(like, sizes=roomy(program.dims), is_natural=False)
    if integers:
        recipe = replace(recipe, indices="named", integers="named", named=integers)
    if not floats:
        yield recipe
        return
    yield replace(recipe, regime="named", fill=partial(_named, floats))
    name, regime = f"{like.name}-halves", "named-halves"
    yield replace(recipe, name=name, regime=regime, fill=partial(_halves, floats))


def plans_of_numbers(program: Program, numbers: GraphNumbers, like: Recipe, seed: int) -> tuple[CasePlan, ...]:
    """Plans of cases of numbers and sizes that a candidate names and the program does not.

    Args:
        program: whose inputs are made.
        numbers: of the candidate alone.
        like: a recipe of ordinary numbers.
        seed: of the values.
    """
    recipes = list(named_recipes(program, numbers, replace(like, name="named-new")))
    sizes = dict(named_sizes(program.dims, numbers.sizes))
    recipes += [replace(like, name=name, sizes=one) for name, one in sizes.items()]
    return tuple(CasePlan(r.name, r.sizes, partial(made, program, r, seed)) for r in recipes)


def stored_rows(program: Program) -> dict[int, tuple[Tensor, ...]]:
    """Stored matrices by the length of their rows, where an input has rows of that length."""
    lengths = set()
    for name, role in free_roles(program).items():
        value = recorded_tensor(program.node(name))
        if role.kind is Kind.FEATURES and value is not None and value.dim() > 1 and isinstance(value.shape[-1], int):
            lengths.add(value.shape[-1])
    found: dict[int, tuple[Tensor, ...]] = {}
    for node in program.graph.find_nodes(op="get_attr"):
        tensor = program.tensors[str(node.target)]
        if tensor.dim() == 2 and tensor.is_floating_point() and tensor.shape[1] in lengths:
            known = found.get(tensor.shape[1], ())
            if tensor.shape[0] <= _MOST_ROWS and len(known) < _MOST_TABLES:
                found[tensor.shape[1]] = (*known, tensor)
    return found


def near_stored_rows(
    tables: Mapping[int, Sequence[Tensor]],
    shape: tuple[int, ...],
    generator: Generator,
    dtype: torch.dtype,
    filled: int,
) -> Tensor:
    """Rows of stored matrices, each moved by a hundredth of their spread."""
    found = tables.get(shape[-1], ()) if shape else ()
    if not found:
        return torch.randn(shape, generator=generator).to(dtype)
    rows = torch.cat([table.detach().to(torch.float64) for table in found])
    count = torch.Size(shape).numel() // shape[-1]
    chosen = rows[torch.randint(len(rows), (count,), generator=generator)]
    spread = float(rows.std()) if rows.numel() > 1 else 1.0
    moved = chosen + 0.01 * spread * torch.randn(chosen.shape, generator=generator, dtype=torch.float64)
    return moved.reshape(shape).to(dtype)


def roomy(dims: Sequence[Dim]) -> dict[str, int]:
    """Sizes with places for many different numbers, in few samples."""
    return {d.name: within(d, _ROWS if i == 0 and len(dims) > 1 else _PLACES) for i, d in enumerate(dims)}


def _named(
    named: Sequence[float], shape: tuple[int, ...], generator: Generator, dtype: torch.dtype, filled: int
) -> Tensor:
    """Named numbers, and those beside them."""
    each = torch.tensor(named, dtype=torch.float64)
    return _among_normal(torch.cat([each, each - _BESIDE, each + _BESIDE, -each]), shape, generator, dtype)


def _halves(
    named: Sequence[float], shape: tuple[int, ...], generator: Generator, dtype: torch.dtype, filled: int
) -> Tensor:
    """Half-way between multiples of a named number or of its inverse: what rounding decides by its rule for ties."""
    each = torch.tensor(named, dtype=torch.float64)
    steps = torch.tensor([0.5, 1.5, -0.5, -1.5, 2.5, -2.5], dtype=torch.float64)
    halves = torch.cat([torch.outer(steps, 1 / each), torch.outer(steps, each)], 1).flatten()
    return _among_normal(halves, shape, generator, dtype)


def _among_normal(chosen: Tensor, shape: tuple[int, ...], generator: Generator, dtype: torch.dtype) -> Tensor:
    chosen = chosen[chosen.abs() <= min(_LARGEST_NAMED, torch.finfo(dtype).max)]
    made = torch.randn(shape, generator=generator, dtype=torch.float64)
    return mixed_with(made, chosen, generator).to(dtype)
