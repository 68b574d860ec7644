"""``flowopt inspect``: what is in a model or an artifact, counted."""

from pathlib import Path
from typing import Annotated

import typer

from flowopt.cli.json_file import STDOUT, require_writable, write_json
from flowopt.cli.loading import LoadOptions, load_model, load_options
from flowopt.cli.options import (
    Debug,
    Dynamic,
    Eval,
    Factory,
    Inputs,
    Json,
    Limit,
    Passes,
    Shape,
    TrustOption,
)
from flowopt.cli.parsing import parse_limits
from flowopt.errors import UserError
from flowopt.formats.detect import detect
from flowopt.formats.kinds import Kind
from flowopt.pipeline.presets import DEFAULT_PRESET


def inspect(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|ARTIFACT", show_default=False, help="As for optimize; or an artifact's folder, or .onnx."
        ),
    ],
    passes: Passes = DEFAULT_PRESET,
    streams: Annotated[
        bool,
        typer.Option(
            "--streams", help="Show residual streams: who writes, which norms read, who else does.", show_default=False
        ),
    ] = False,
    eval_mode: Eval = False,
    dynamic: Dynamic = None,
    shape: Shape = None,
    inputs: Inputs = None,
    factory: Factory = None,
    trust: TrustOption = "data",
    limit: Limit = None,
    json: Json = None,
    debug: Debug = False,
) -> None:
    """Show what is in a model or an artifact.

    Of a model: operators, stored tensors, cost of one run, inputs and outputs, state, and how often passes would fire
    or refuse. Of an artifact: what its files hold and its report says; nothing in it is run.

    \b
    Examples:
      flowopt inspect model.pt2 --passes fold-constants
      flowopt inspect model.pt2 --streams
      flowopt inspect model.flowopt --json -
    """
    options = load_options(trust, eval_mode, dynamic, factory, shape, inputs, limit)
    require_writable(json)
    if _is_artifact(Path(model)):
        _require_no_model_options(model, options, passes, streams=streams)
        _inspect_artifact(model, options, json)
        return

    from flowopt.cli.render import progress
    from flowopt.cli.render_inspection import render_model
    from flowopt.report.to_json import to_json
    from flowopt.workflows.inspect import inspect_model
    from flowopt.workflows.pipelines import Pipeline

    # A name that is wrong is found before the model is loaded.
    pipeline = Pipeline(passes)
    with progress() as show:
        show(f"loading {model}")
        program = load_model(model, options)
        show("counting")
        found = inspect_model(program, passes=pipeline, with_streams=streams)
    if json is not None:
        write_json(json, to_json(found))
    if json != STDOUT:
        render_model(found, model)


def _inspect_artifact(model: str, options: LoadOptions, json: Path | None) -> None:
    from flowopt.cli.render_inspection import render_artifact
    from flowopt.report.to_json import to_json
    from flowopt.workflows.inspect_artifact import inspect_artifact

    found = inspect_artifact(model, limits=parse_limits(options.limit))
    if json is not None:
        write_json(json, to_json(found))
    if json != STDOUT:
        render_artifact(found, model)


def _is_artifact(path: Path) -> bool:
    return path.is_dir() or (path.is_file() and detect(path).kind is Kind.ONNX)


def _require_no_model_options(model: str, options: LoadOptions, passes: str, *, streams: bool) -> None:
    given = [*options.capture_words, *(["--passes"] if passes != DEFAULT_PRESET else [])]
    given += ["--streams"] if streams else []
    if given:
        raise UserError(
            f"{given[0]} is for models that passes can rewrite; {model} is lowered already", hint="leave it out"
        )
