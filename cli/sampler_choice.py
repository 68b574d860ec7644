"""Which sampler the options of ``flowopt sampler`` mean, and which inputs of the network it feeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

from flowopt.cli.sampler_parsing import Setting, parse_numbers
from flowopt.cli.sampler_words import in_options
from flowopt.errors import UserError

if TYPE_CHECKING:
    from flowopt.program.program import Program
    from flowopt.sampling.roles import Roles
    from flowopt.sampling.spec import SamplerSpec

Order = Literal["sample-first", "time-first"]


@final
@dataclass(frozen=True, slots=True)
class ChosenSampler:
    """A sampler, and in which order networks of its convention take their inputs; None where nothing says it."""

    spec: "SamplerSpec"
    order: Order | None


def chosen_sampler(
    solver: str | None,
    steps: int | None,
    schedule: str | None,
    convention: str | None,
    scheduler: Path | None,
    changes: Mapping[str, Setting],
) -> ChosenSampler:
    """By the names of its parts, or out of the file of a scheduler.

    Raises:
        UserError: both or neither, or anything in it that is not possible; the message names options.
        ModelNotFound, MalformedModel, MissingDependency: the scheduler.
    """
    if scheduler is not None:
        given = {"--solver": solver, "--schedule": schedule, "--convention": convention}
        clashes = [name for name, value in given.items() if value is not None]
        if clashes:
            raise UserError(
                f"{clashes[0]} beside --scheduler",
                why="a scheduler of diffusers brings its own solver, schedule and convention",
                hint="leave one of the two out",
            )
        return _of_scheduler(scheduler, steps, changes)
    if solver is None:
        raise UserError(
            "which sampler?",
            hint="--solver heun --steps 20 --convention diffusers-flow,\n"
            "or --scheduler DIR --steps 20 for a scheduler that diffusers saved",
        )
    if convention is None:
        from flowopt.sampling.conventions import CONVENTIONS

        raise UserError(
            "whose network is it?",
            why="code bases differ in what the time and the prediction mean, and nothing in a network says it",
            hint=f"--convention {', '.join(CONVENTIONS)}",
        )
    from flowopt.sampling.conventions import convention_named
    from flowopt.sampling.samplers import make_sampler

    options: dict[str, Any] = dict(changes)
    with in_options("sampler"):
        spec = make_sampler(solver, steps, schedule, convention, **options)
        order = changes.get("arguments", convention_named(convention).arguments)
    return ChosenSampler(spec, "time-first" if order == "time-first" else "sample-first")


def network_roles(
    program: "Program",
    chosen: ChosenSampler,
    sample: str | None,
    times: Sequence[str] | None,
    prediction: str | None,
) -> "Roles":
    """By name and kind; where those do not tell and nothing was said, by the convention's order of arguments.

    Raises:
        UserError: they cannot be told, or do not fit.
    """
    from flowopt.sampling.roles import ordered_roles, roles_of

    count = len(chosen.spec.times[0])
    try:
        return roles_of(program, count, sample=sample, times=times or None, prediction=prediction)
    except UserError:
        if sample is not None or times or chosen.order is None:
            raise
        try:
            return ordered_roles(program, count, chosen.order, prediction=prediction)
        except UserError:
            pass
        raise


def _of_scheduler(path: Path, steps: int | None, changes: Mapping[str, Setting]) -> ChosenSampler:
    from flowopt.sampling.probing.probe_scheduler import probe_scheduler
    from flowopt.sampling.probing.scheduler_file import read_scheduler

    scheduler, rest = read_scheduler(path, changes)
    lists: dict[str, Any] = {key: _several(rest.pop(key)) for key in ("sigmas", "timesteps") if key in rest}
    if steps is None and not lists:
        raise UserError("how many steps?", hint="--steps 28, or --set sigmas=1,0.75,0.5,0.25")
    options: dict[str, Any] = {**rest, **lists}
    with in_options("sampler"):
        return ChosenSampler(probe_scheduler(scheduler, steps, **options), None)


def _several(value: object) -> object:
    """One number is a list of one."""
    numbers = parse_numbers(str(value)) if isinstance(value, (int, float)) else None
    return list(numbers) if numbers is not None else list(value) if isinstance(value, tuple) else value
