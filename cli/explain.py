"""``flowopt explain``: every site of every pass, applied or refused, and why."""

from typing import Annotated

import typer

from flowopt.cli.json_file import STDOUT, require_writable, write_json
from flowopt.cli.loading import load_model, load_options
from flowopt.cli.options import (
    Debug,
    Dynamic,
    Eval,
    Factory,
    Inputs,
    Json,
    Limit,
    Model,
    Passes,
    Shape,
    TrustOption,
)
from flowopt.pipeline.presets import DEFAULT_PRESET
from flowopt.pipeline.registry import pass_class


def explain(
    model: Model,
    only: Annotated[
        list[str] | None,
        typer.Option("--pass", metavar="NAME", show_default=False, help="Show this pass alone. Repeatable."),
    ] = None,
    passes: Passes = DEFAULT_PRESET,
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
    """Show where passes fire, and why not elsewhere.

    Every site of every pass: applied or refused, with the guard and the source line. Nothing is verified or written.
    """
    options = load_options(trust, eval_mode, dynamic, factory, shape, inputs, limit)
    require_writable(json)

    from flowopt.cli.render import progress
    from flowopt.cli.render_results import Renderer
    from flowopt.report.to_json import to_json
    from flowopt.workflows.explain import explain as run
    from flowopt.workflows.pipelines import Pipeline

    # A name that is wrong is found before the model is loaded.
    pipeline = Pipeline(passes)
    for name in only or []:
        pass_class(name)
    with progress() as show:
        show(f"loading {model}")
        program = load_model(model, options)
        show("looking for rewrites")
        report = run(program, passes=pipeline, only=only or [])
    if json is not None:
        write_json(json, to_json(report))
    if json != STDOUT:
        Renderer().explain(report, model)
