"""A sampler from the names of its parts."""

import dataclasses
import inspect
from collections.abc import Mapping, Sequence

from flowopt.errors import InternalError, UserError
from flowopt.nearest import nearest
from flowopt.sampling.convention import Convention
from flowopt.sampling.conventions import convention_named
from flowopt.sampling.problem import Problem
from flowopt.sampling.schedules import make_times
from flowopt.sampling.solvers.registry import SolverEntry, solver_entry
from flowopt.sampling.spec import SamplerSpec

Option = float | str | bool


def make_sampler(
    solver: str = "euler",
    steps: int | None = None,
    schedule: str | Sequence[float] | None = None,
    convention: str | Convention = "diffusers-flow",
    *,
    inverts: bool = False,
    **options: Option,
) -> SamplerSpec:
    """The table of a sampler.

    make_sampler("heun", 20, "shift:3", "diffusers-flow", time_scale=1.0)
    make_sampler("flowturbo:H2P4", convention="flowturbo")
    make_sampler("ddim", schedule=[999, 749, 499, 249], convention="stable-diffusion", eta=0.5)

    Args:
        solver: a name of ``flowopt.sampling.solvers.registry``, with an argument behind a colon where it takes one.
        steps: how many; not needed where the schedule lists times or the solver's phases say it.
        schedule: text of ``flowopt.sampling.schedules``, or times; the convention's own where it is None.
        convention: a preset of ``flowopt.sampling.conventions``, or your own.
        inverts: run the grid from data to noise: the sample's noise is found.
        options: of the solver, or fields of Convention to change.

    Raises:
        UserError: a name, a number or a combination that is not possible, and what to write.
    """
    name, _, argument = solver.partition(":")
    entry = solver_entry(name)
    chosen, changes = _sorted(entry, argument, options)
    own = _changed(convention, changes)
    entry.require_fit(own)
    grid = own
    if entry.counts_steps:
        steps, grid = _own_steps(entry, chosen, steps), dataclasses.replace(own, counts_points=False)
    times = make_times(own.schedule if schedule is None else schedule, steps, grid)
    notes = [_points_note(grid, times)] if grid.counts_points else []
    if inverts:
        times = times[::-1]
    problem = Problem(own, times, notes=notes)
    if inverts and not problem.can_ask(times[0]):
        raise UserError(
            f"an inversion asks the network at t={times[0]:g}, where that of {own.name} is not asked",
            hint=f"write last_time a little off {times[0]:g}: there the inversion starts",
        )
    spec = entry.load()(problem, **chosen)
    if not isinstance(spec, SamplerSpec):
        raise InternalError(f"the solver {name!r} returned a {type(spec).__name__}")
    if entry.is_known_as:
        spec = spec.with_notes(f"{name} is {entry.is_known_as}: its steps are algebraically the same")
    return spec


def _sorted(
    entry: SolverEntry, argument: str, options: Mapping[str, Option]
) -> tuple[dict[str, Option], dict[str, Option]]:
    """Options of the solver, and fields of the convention."""
    parameters = inspect.signature(entry.load()).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    fields = [field.name for field in dataclasses.fields(Convention) if field.name != "name"]
    for key in options:
        if key not in defaults and key not in fields:
            hint = nearest(key, [*defaults, *fields], otherwise="options:")
            raise UserError(f"neither the solver {entry.name} nor a convention has an option {key!r}", hint=hint)
    chosen = {key: value for key, value in options.items() if key in defaults}
    if argument:
        if not entry.argument:
            raise UserError(f"the solver {entry.name} takes no argument", hint=f"write {entry.name}")
        if entry.argument in chosen:
            raise UserError(f"{entry.argument} is given twice", hint=f"write {entry.name}:{argument} alone")
        chosen[entry.argument] = argument
    typed = {key: _like(defaults[key], key, value) for key, value in chosen.items()}
    return typed, {key: value for key, value in options.items() if key not in defaults}


def _like(default: Option, key: str, value: Option) -> Option:
    """The value, of the default's type."""
    if isinstance(default, bool) or isinstance(value, bool):
        if isinstance(default, bool) and isinstance(value, bool):
            return value
    elif isinstance(default, str) and isinstance(value, str):
        return value
    elif isinstance(default, (int, float)):
        try:
            return int(value) if isinstance(default, int) else float(value)
        except (ValueError, OverflowError):
            pass
    raise UserError(f"{key}={value!r} is not understood", hint=f"write it like the default, {key}={default}")


def _changed(convention: str | Convention, changes: Mapping[str, Option]) -> Convention:
    if isinstance(convention, str):
        return convention_named(convention, **changes)
    return dataclasses.replace(convention, **changes)  # type: ignore[arg-type]  # checked by Convention itself


def _own_steps(entry: SolverEntry, chosen: Mapping[str, Option], steps: int | None) -> int:
    """The number of steps that the solver's options say; another number is a contradiction."""
    found = entry.load("step_count")(**chosen)
    if not isinstance(found, int):
        raise InternalError(f"step_count of {entry.name!r} returned a {type(found).__name__}")
    if steps is not None and steps != found:
        raise UserError(f"steps={steps}, and {entry.argument} of {entry.name} says {found}", hint="leave steps out")
    return found


def _points_note(convention: Convention, times: Sequence[float]) -> str:
    return f"{convention.name} counts points of the grid: {len(times)} points make {len(times) - 1} steps"
