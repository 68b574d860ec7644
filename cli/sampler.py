"""``flowopt sampler``: fold a sampler and its network into one file that is proved against the plain loop."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowopt.cli.json_file import STDOUT, require_writable, write_json
from flowopt.cli.loading import load_model, load_options
from flowopt.cli.optimize import VerifyMode
from flowopt.cli.options import (
    DEFAULT_CASE_BUDGET,
    Arch,
    CaseBudget,
    Debug,
    Dynamic,
    Eval,
    Factory,
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
from flowopt.cli.sampler_choice import chosen_sampler, network_roles
from flowopt.cli.sampler_file import file_of
from flowopt.cli.sampler_options import (
    Clamp,
    Config,
    ConventionOption,
    FormOption,
    Guidance,
    GuidanceChannels,
    GuidanceOrderOption,
    OutputScale,
    OutputShift,
    Prediction,
    Sample,
    Schedule,
    Scheduler,
    Set,
    Solver,
    Steps,
    Time,
    Unconditional,
)
from flowopt.cli.sampler_parsing import parse_clamp, parse_guidance, parse_settings
from flowopt.cli.sampler_words import in_options
from flowopt.errors import UserError
from flowopt.pipeline.presets import DEFAULT_PRESET

if TYPE_CHECKING:
    from flowopt.report.report import Report


def sampler(
    context: typer.Context,
    model: Model,
    solver: Solver = None,
    steps: Steps = None,
    schedule: Schedule = None,
    convention: ConventionOption = None,
    scheduler: Scheduler = None,
    settings: Set = None,
    guidance: Guidance = None,
    unconditional: Unconditional = None,
    guidance_channels: GuidanceChannels = None,
    guidance_order: GuidanceOrderOption = None,
    sample: Sample = None,
    time: Time = None,
    prediction: Prediction = None,
    output_scale: OutputScale = 1.0,
    output_shift: OutputShift = 0.0,
    clamp: Clamp = None,
    config: Config = None,
    form: FormOption = "auto",
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
    verify: Annotated[
        VerifyMode, typer.Option("--verify", help="Judge each pass and the file; only the end and the file; nothing.")
    ] = "each",
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
    """Fold a sampler and its network into one file.

    MODEL is the network, one evaluation. Noise and conditions go into the file, the sample comes out; what the network
    computes from the time alone becomes tables. The passes are those of flowopt optimize. The file is compared with the
    network in a plain loop, step by step and from noise to sample. Exit codes are those of flowopt optimize.

    \b
    Examples:
      flowopt sampler dit.pt2 --solver heun --steps 20 --schedule shift:3 --convention diffusers-flow
      flowopt sampler sit.pt2 --solver euler --steps 50 --convention sit --guidance cfg:4 --unconditional y=1000
      flowopt sampler unet.pt2 --scheduler pipeline/scheduler --steps 28 --set eta=1 --guidance cfg:input
      flowopt sampler dit.pt2 --config sampler.toml --steps 4 --form copies -o out

    \b
    A file, sampler.toml:
      solver = "heun"
      steps = 20
      convention = "diffusers-flow"    # or a table [convention]: name, and fields to change
      [guidance]
      scale = 4                        # a list: one per evaluation; "input": a scale that is an input
      unconditional = { label = 1000 }
      [output]
      clamp = [-1, 1]
    """
    if require_device and (dry_run or verify == "off"):
        raise UserError("--require-device asks for a check that --dry-run and --verify off leave out")
    if target == "torch" and form not in ("auto", "copies"):
        raise UserError(f"--form {form} is a form of ONNX, and --target torch writes copies", hint="leave --form out")
    if target in ("tvm", "tvm-cuda") and form in ("scan", "loop"):
        raise UserError(f"--form {form} is a form of ONNX", hint="--form copies or function, or leave it out")
    options = load_options(trust, eval_mode, dynamic, factory, shape, inputs, limit)
    require_writable(json)
    file = file_of(context)
    # Fields of a file's convention go with it: another one does not have to like them.
    source = context.get_parameter_source("convention")
    fields = file.fields if source is not None and source.name == "DEFAULT_MAP" else ()
    changes = parse_settings(fields) | parse_settings(file.settings) | parse_settings(settings or [])
    ending = parse_clamp(clamp)
    filled = [*(unconditional or []), *file.unconditional_beside(unconditional or [])]
    guided = parse_guidance(guidance, filled, guidance_channels, guidance_order)

    from flowopt.cli.outcome import optimize_code
    from flowopt.cli.render import progress
    from flowopt.cli.render_sampler import render_sampler
    from flowopt.lowering.staging import Staging
    from flowopt.lowering.targets import target as target_named
    from flowopt.report.to_json import plain, to_json
    from flowopt.sampling.ends import Epilogue
    from flowopt.workflows.optimize import default_folder
    from flowopt.workflows.pipelines import Pipeline
    from flowopt.workflows.sampler import optimize_sampler

    # What is wrong with the words is found before the model is loaded, a folder that is wrong before it is verified.
    target_named(target, arch)
    pipeline = Pipeline(passes, skip=skip or [])
    chosen = chosen_sampler(solver, steps, schedule, convention, scheduler, changes)
    with progress() as show:
        show(f"loading {model}")
        program = load_model(model, options)
        folder = out if out is not None else default_folder(program)
        if not dry_run:
            with Staging(folder):
                pass
        with in_options("network"):
            roles = network_roles(program, chosen, sample, time, prediction)
            result = optimize_sampler(
                program,
                chosen.spec,
                target=target,
                arch=arch,
                folder=folder,
                guidance=guided,
                form=form,
                sample=roles.sample,
                times=roles.times,
                prediction=roles.prediction,
                output=Epilogue(output_scale, output_shift, ending),
                passes=pipeline,
                verify=verify,
                dry_run=dry_run,
                seed=seed,
                level=level,
                case_budget=case_budget,
                on_progress=show,
            )
    code = optimize_code(result.report, result.verdict, strict=strict, require_device=require_device)
    written = result.artifact.folder if result.artifact is not None else None
    if json is not None:
        extra = {"verdict": result.verdict, "artifact": str(written) if written else None, "exit_code": code}
        write_json(json, to_json(plain(result.report) | extra))
    if json != STDOUT:
        render_sampler(result.report, result.verdict, model, roles, written, _last_line(result.report, strict))
    raise typer.Exit(code)


def _last_line(report: "Report", strict: bool) -> str:
    """What is left to do, or an empty string."""
    if report.outcome == "verified-on-cpu":
        return "verified-on-cpu: no GPU took part; the same command on a machine that has one completes it"
    if report.outcome == "compiled-not-run":
        return "compiled-not-run: no GPU ran the library; the same command on a machine that has one completes it"
    if report.outcome == "not-verified":
        return "not-verified: nothing was compared with the network (--verify off)"
    if strict and any(p.outcome == "reverted" for p in report.passes):
        return "strict: a pass was reverted (exit 1)"
    return ""
