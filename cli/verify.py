"""``flowopt verify``: the referee between a model and what was made of it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowopt.cli.json_file import STDOUT, require_writable, write_json
from flowopt.cli.loading import load_model
from flowopt.cli.options import Debug, Dynamic, Eval, Json, Seed, Trust, TrustOption
from flowopt.errors import UserError

if TYPE_CHECKING:
    from flowopt.program.program import Program


def verify(
    reference: Annotated[
        str,
        typer.Argument(metavar="REFERENCE", show_default=False, help="The original: an archive or a factory."),
    ],
    candidate: Annotated[
        str,
        typer.Argument(metavar="CANDIDATE", show_default=False, help="An artifact's folder, an archive or a factory."),
    ],
    trust: TrustOption = "data",
    provider: Annotated[
        str | None,
        typer.Option(
            "--provider", metavar="NAME", show_default=False, help="Of ONNX Runtime, for artifacts: cpu, cuda."
        ),
    ] = None,
    eval_mode: Eval = False,
    dynamic: Dynamic = None,
    seed: Seed = 0,
    json: Json = None,
    debug: Debug = False,
) -> None:
    """Compare two models against a float64 oracle.

    Structure, special values, discrete outputs and rounding: whatever was made of a model, is it still that function?

    Exit codes: 0 equivalent, 1 different, 3 inconclusive; others as for optimize.
    """
    require_writable(json)
    if provider is not None and not Path(candidate).is_dir():
        raise UserError(f"--provider applies to artifact folders, and {candidate} is none")
    _require_factory(reference, candidate, eval_mode, dynamic or [])

    from flowopt.cli.outcome import verdict_code
    from flowopt.cli.render import Renderer, progress
    from flowopt.report.to_json import plain, to_json
    from flowopt.workflows.verify import verify as run

    with progress() as show:
        show("loading both models")
        first = _loaded(reference, trust, eval_mode, dynamic or [])
        second = _loaded(candidate, trust, eval_mode, dynamic or [])
        verdict = run(first, second, trust=trust, provider=provider, seed=seed, on_progress=show)
    code = verdict_code(verdict)
    if json is not None:
        extra = {"power": verdict.power, "exit_code": code}
        write_json(json, to_json(plain(verdict) | extra))
    if json != STDOUT:
        Renderer().verify(verdict, reference, candidate)
    raise typer.Exit(code)


def _require_factory(reference: str, candidate: str, eval_mode: bool, dynamic: list[str]) -> None:
    if (eval_mode or dynamic) and Path(reference).exists() and Path(candidate).exists():
        given = "--dynamic" if dynamic else "--eval"
        raise UserError(f"{given} applies to factories; {reference} and {candidate} are captured already")


def _loaded(model: str, trust: Trust, eval_mode: bool, dynamic: list[str]) -> "Program | str":
    """A program; a folder stays a path, which the workflow opens."""
    if Path(model).is_dir():
        return model
    # The options are for the factory of the two; the other one is fixed already.
    is_factory = not Path(model).exists()
    return load_model(model, trust=trust, eval_mode=eval_mode and is_factory, dynamic=dynamic if is_factory else [])
