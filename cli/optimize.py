"""``flowopt optimize``: rewrite, verify, lower, verify the file, write the artifact."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flowopt.cli.json_file import STDOUT, require_writable, write_json
from flowopt.cli.loading import LoadOptions, load_model, load_options
from flowopt.cli.options import (
    DEFAULT_CASE_BUDGET,
    Arch,
    BaselineOption,
    CaseBudget,
    Debug,
    Dynamic,
    Eval,
    Factory,
    Form,
    Inputs,
    Json,
    Level,
    Limit,
    Model,
    Passes,
    Seed,
    Shape,
    Target,
    TrustOption,
)
from flowopt.cli.parsing import parse_require
from flowopt.errors import UserError
from flowopt.pipeline.presets import DEFAULT_PRESET
from flowopt.pipeline.registry import pass_class

if TYPE_CHECKING:
    from flowopt.report.report import Report

VerifyMode = Literal["each", "final", "off"]


def optimize(
    model: Model,
    target: Target = "cpu",
    arch: Arch = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="DIR", show_default=False, help="The artifact's; else <name>.flowopt."),
    ] = None,
    passes: Passes = DEFAULT_PRESET,
    skip: Annotated[
        list[str] | None, typer.Option("--skip", metavar="NAME", show_default=False, help="A pass to leave out.")
    ] = None,
    require: Annotated[
        list[str] | None,
        typer.Option("--require", metavar="NAME:COUNT", show_default=False, help="Exit 4 if applied at fewer sites."),
    ] = None,
    baseline: BaselineOption = None,
    verify: Annotated[
        VerifyMode, typer.Option("--verify", help="Judge each pass, undoing those that fail; only the end; nothing.")
    ] = "each",
    tuned: Annotated[
        Path | None,
        typer.Option(
            "--tuned", metavar="FILE", show_default=False, help="Measured choices to follow in place of cost models."
        ),
    ] = None,
    form: Form = "parallel",
    sequence: Annotated[
        str | None,
        typer.Option(
            "--sequence", metavar="DIM", show_default=False, help="Of a step: the free dimension of its tokens."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Stop before lowering; nothing is written.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 1 if a pass was reverted.")] = False,
    require_device: Annotated[
        bool, typer.Option("--require-device", help="Exit 3 if the target's device took no part.")
    ] = False,
    eval_mode: Eval = False,
    dynamic: Dynamic = None,
    shape: Shape = None,
    inputs: Inputs = None,
    factory: Factory = None,
    trust: TrustOption = "data",
    limit: Limit = None,
    level: Level = "quick",
    case_budget: CaseBudget = DEFAULT_CASE_BUDGET,
    seed: Seed = 0,
    json: Json = None,
    debug: Debug = False,
) -> None:
    """Rewrite a model and prove every rewrite.

    Writes an artifact: the lowered model, its weights, and a report of what was rewritten, what was refused and why.

    Exit codes: 0 verified, 1 different, 2 usage, 3 inconclusive, 4 a --require or --baseline is not met, 65 malformed
    model or baseline, 66 no such model or baseline, 69 a backend is missing, 70 internal error, 73 cannot write,
    74 disk, 77 refused by --trust, 130 interrupted.

    \b
    Examples:
      flowopt optimize model.pt2 --passes my.toml -o out
      flowopt optimize model.pt2 -o new --baseline out/report.json
      flowopt optimize my_model:causal --form recurrent -o step
    """
    required = parse_require(require or [])
    if sequence is not None and form != "recurrent":
        raise UserError("--sequence names the tokens of a step", hint="--form recurrent --sequence " + sequence)
    if require_device and (dry_run or verify == "off"):
        raise UserError("--require-device asks for a check that --dry-run and --verify off leave out")
    options = load_options(trust, eval_mode, dynamic, factory, shape, inputs, limit)
    require_writable(json)

    from flowopt.cli.outcome import optimize_code
    from flowopt.cli.render import progress
    from flowopt.cli.render_results import Renderer
    from flowopt.lowering.staging import Staging
    from flowopt.lowering.targets import target as target_named
    from flowopt.report.to_json import plain, to_json
    from flowopt.workflows.baseline import Baseline
    from flowopt.workflows.optimize import default_folder
    from flowopt.workflows.optimize import optimize as run
    from flowopt.workflows.pipelines import Pipeline
    from flowopt.workflows.tuned import Tuned

    # A name that is wrong is found before the model is loaded, a folder that is wrong before the model is verified.
    target_named(target, arch)
    pipeline = Pipeline(passes, skip=skip or [])
    least = Baseline.read(baseline) if baseline is not None else None
    choices = Tuned.load(tuned) if tuned is not None else None
    if choices is not None:
        pipeline.following(choices)
    for name in required:
        pass_class(name)
    with progress() as show:
        show(f"loading {model}")
        program = load_model(model, options)
        folder = out if out is not None else default_folder(program)
        if not dry_run:
            with Staging(folder):
                pass
        result = run(
            program,
            target=target,
            arch=arch,
            folder=folder,
            passes=pipeline,
            verify=verify,
            require=required,
            baseline=least,
            dry_run=dry_run,
            seed=seed,
            level=level,
            case_budget=case_budget,
            tuned=choices,
            form=form,
            sequence=sequence,
            on_progress=show,
        )
    code = optimize_code(result.report, result.verdict, strict=strict, require_device=require_device)
    written = result.artifact.folder if result.artifact is not None else None
    if json is not None:
        extra = {"verdict": result.verdict, "artifact": str(written) if written else None, "exit_code": code}
        write_json(json, to_json(plain(result.report) | extra))
    if json != STDOUT:
        last = _last_line(
            result.report, _verify_command(model, folder, options, is_library=target == "tvm-cuda"), strict
        )
        Renderer().optimize(result.report, result.verdict, model, written, last)
    raise typer.Exit(code)


def _last_line(report: "Report", command: str, strict: bool) -> str:
    """What is left to do, or an empty string."""
    if report.outcome == "verified-on-cpu":
        return f"verified-on-cpu: no GPU took part; on a machine that has one: {command}"
    if report.outcome == "compiled-not-run":
        return f"compiled-not-run: no GPU ran the library; on a machine that has one: {command}"
    if report.outcome == "not-verified":
        return "not-verified: nothing was compared with the original (--verify off)"
    if strict and any(p.outcome == "reverted" for p in report.passes):
        return "strict: a pass was reverted (exit 1)"
    return ""


def _verify_command(model: str, folder: Path, options: LoadOptions, *, is_library: bool) -> str:
    words = list(options.words)
    if is_library:
        at = words.index("--trust") if "--trust" in words else len(words)
        words[at : at + 2] = ["--trust", "code"]
    return shlex.join(["flowopt", "verify", model, str(folder), "--provider", "cuda", *words])
