"""``flowopt verify``: the referee between a model and what was made of it."""

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowopt.cli.json_file import STDOUT, require_writable, write_json
from flowopt.cli.loading import LoadOptions, is_archive, is_weights, load_model, load_options
from flowopt.cli.options import (
    DEFAULT_CASE_BUDGET,
    BaselineOption,
    CaseBudget,
    Debug,
    Dynamic,
    Eval,
    Factory,
    Json,
    Level,
    Limit,
    Seed,
    Shape,
    TrustOption,
)
from flowopt.cli.parsing import parse_limits
from flowopt.errors import UserError

if TYPE_CHECKING:
    from flowopt.program.program import Program


def verify(
    reference: Annotated[
        str,
        typer.Argument(
            metavar="REFERENCE", show_default=False, help="The original: a file or a factory, as for optimize."
        ),
    ],
    candidate: Annotated[
        str,
        typer.Argument(metavar="CANDIDATE", show_default=False, help="An artifact's folder, a file or a factory."),
    ],
    provider: Annotated[
        str | None,
        typer.Option("--provider", metavar="NAME", show_default=False, help="Where an artifact runs: cpu, cuda."),
    ] = None,
    eval_mode: Eval = False,
    dynamic: Dynamic = None,
    shape: Shape = None,
    inputs: Annotated[
        Path | None,
        typer.Option(
            "--inputs",
            metavar="FILE.npz|DIR",
            show_default=False,
            help="Your own cases, as arrays by name, beside the named ones; the first is the example where needed.",
        ),
    ] = None,
    reproducer: Annotated[
        Path | None,
        typer.Option(
            "--reproducer",
            metavar="FILE.npz",
            show_default=False,
            help="Save the inputs of the worst case; --inputs replays them.",
        ),
    ] = None,
    factory: Factory = None,
    trust: TrustOption = "data",
    limit: Limit = None,
    level: Level = "quick",
    case_budget: CaseBudget = DEFAULT_CASE_BUDGET,
    seed: Seed = 0,
    baseline: BaselineOption = None,
    json: Json = None,
    debug: Debug = False,
) -> None:
    """Compare two models against a float64 oracle.

    Structure, special values, discrete outputs and rounding: whatever was made of a model, is it still that function?
    At --level full also: every size of every free dimension, every kind of numbers, stressed weights, repeated calls,
    memory layouts, threads.

    Exit codes: 0 equivalent, 1 different, 3 inconclusive, 4 a --baseline is not met; others as for optimize.

    Example: flowopt verify model.pt2 out --baseline old/report.json
    """
    example, data = _example_and_data(inputs, (reference, candidate))
    options = load_options(trust, eval_mode, dynamic, factory, shape, example, limit)
    require_writable(json)
    require_writable(reproducer, "--reproducer")
    if provider is not None and not Path(candidate).is_dir():
        raise UserError(f"--provider applies to artifact folders, and {candidate} is none")
    _require_applies(reference, candidate, options)

    from flowopt.cli.outcome import verdict_code
    from flowopt.cli.render import progress
    from flowopt.cli.render_results import Renderer
    from flowopt.report.to_json import plain, to_json
    from flowopt.workflows.baseline import Baseline
    from flowopt.workflows.verify import verify as run

    least = Baseline.read(baseline) if baseline is not None else None
    limits = parse_limits(options.limit)
    with progress() as show:
        show("loading both models")
        first = _loaded(reference, options)
        second = _loaded(candidate, options)
        verdict = run(
            first,
            second,
            trust=trust,
            provider=provider,
            limits=limits,
            seed=seed,
            level=level,
            inputs=data,
            case_budget=case_budget,
            reproducer=reproducer,
            baseline=least,
            on_progress=show,
        )
    code = verdict_code(verdict)
    if json is not None:
        extra = {"power": verdict.power, "exit_code": code}
        write_json(json, to_json(plain(verdict) | extra))
    if json != STDOUT:
        command = _replay(reference, candidate, reproducer, options)
        Renderer().verify(verdict, reference, candidate, command)
    raise typer.Exit(code)


def _example_and_data(inputs: Path | None, models: tuple[str, str]) -> tuple[Path | None, Path | None]:
    """What ``--inputs`` is for: cases, and where a model is captured now, its first file is the example."""
    if inputs is None or not any(Path(m).is_file() and not _is_captured(Path(m)) for m in models):
        return None, inputs
    first = min(inputs.glob("*.npz"), default=inputs) if inputs.is_dir() else inputs
    return first, inputs


def _replay(reference: str, candidate: str, reproducer: Path | None, options: LoadOptions) -> str:
    """The command that runs the worst case again; empty where it was not saved."""
    if reproducer is None:
        return ""
    words = dataclasses.replace(options, inputs=None).words
    return shlex.join(["flowopt", "verify", reference, candidate, "--inputs", str(reproducer), *words])


def _require_applies(reference: str, candidate: str, options: LoadOptions) -> None:
    if options.capture_words and all(_is_captured(Path(model)) for model in (reference, candidate)):
        raise UserError(
            f"{options.capture_words[0]} applies to what is captured now; {reference} and {candidate} already are",
            hint="leave it out",
        )
    if options.factory is not None and not any(is_weights(Path(model)) for model in (reference, candidate)):
        raise UserError(
            f"--factory is for files that hold weights alone; neither {reference} nor {candidate} does",
            hint="leave it out, or give the factory in the place of one of them",
        )


def _loaded(model: str, options: LoadOptions) -> "Program | str":
    """A program; a folder stays a path, which the workflow opens."""
    if Path(model).is_dir():
        return model
    # An option that cannot apply to this one is for the other.
    return load_model(model, options.for_one_of_two(model))


def _is_captured(path: Path) -> bool:
    return path.is_dir() or is_archive(path)
