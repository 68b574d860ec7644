"""``flowopt verify``: the referee between a model and what was made of it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowopt.cli.json_file import STDOUT, require_writable, write_json
from flowopt.cli.loading import LoadOptions, is_archive, is_weights, load_model, load_options
from flowopt.cli.options import Debug, Dynamic, Eval, Factory, Inputs, Json, Limit, Seed, Shape, TrustOption
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
        typer.Option(
            "--provider", metavar="NAME", show_default=False, help="Of ONNX Runtime, for artifacts: cpu, cuda."
        ),
    ] = None,
    eval_mode: Eval = False,
    dynamic: Dynamic = None,
    shape: Shape = None,
    inputs: Inputs = None,
    factory: Factory = None,
    trust: TrustOption = "data",
    limit: Limit = None,
    seed: Seed = 0,
    json: Json = None,
    debug: Debug = False,
) -> None:
    """Compare two models against a float64 oracle.

    Structure, special values, discrete outputs and rounding: whatever was made of a model, is it still that function?

    Exit codes: 0 equivalent, 1 different, 3 inconclusive; others as for optimize.
    """
    options = load_options(trust, eval_mode, dynamic, factory, shape, inputs, limit)
    require_writable(json)
    if provider is not None and not Path(candidate).is_dir():
        raise UserError(f"--provider applies to artifact folders, and {candidate} is none")
    _require_applies(reference, candidate, options)

    from flowopt.cli.outcome import verdict_code
    from flowopt.cli.render import Renderer, progress
    from flowopt.report.to_json import plain, to_json
    from flowopt.workflows.verify import verify as run

    limits = parse_limits(options.limit)
    with progress() as show:
        show("loading both models")
        first = _loaded(reference, options)
        second = _loaded(candidate, options)
        verdict = run(first, second, trust=trust, provider=provider, limits=limits, seed=seed, on_progress=show)
    code = verdict_code(verdict)
    if json is not None:
        extra = {"power": verdict.power, "exit_code": code}
        write_json(json, to_json(plain(verdict) | extra))
    if json != STDOUT:
        Renderer().verify(verdict, reference, candidate)
    raise typer.Exit(code)


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
