"""``flowopt adapt``: change a trained model approximately, win back what that cost, and say what is left of it."""

import os
from pathlib import Path
from typing import Annotated

import typer

from flowopt.cli.adapt_attention_options import (
    Chunk,
    KeepBy,
    KeepSoftmax,
    Layers,
    Length,
    Linearize,
    Lora,
    TransferLearningRate,
    TransferSteps,
    Window,
)
from flowopt.cli.adapt_methods import method_of, refuse_options_of_others
from flowopt.cli.adapt_options import (
    BatchSize,
    Calibration,
    Checkpoint,
    Config,
    DataOption,
    FeatureWeight,
    Force,
    HeldOut,
    LearningRate,
    Loss,
    MaxDrop,
    MaxError,
    MetricOption,
    MinAgreement,
    MinCosine,
    Minutes,
    Most,
    Norms,
    NoTiming,
    OptimizerOption,
    Output,
    Padding,
    Patience,
    Recalibrate,
    Recover,
    Resume,
    ScheduleOption,
    Settle,
    Steps,
    SwapNorm,
    TargetWeight,
    Threshold,
)
from flowopt.cli.json_file import STDOUT, require_writable, write_json
from flowopt.cli.loading import load_model, load_options
from flowopt.cli.options import (
    Arch,
    Debug,
    Dynamic,
    Eval,
    Factory,
    Form,
    Inputs,
    Json,
    Limit,
    Model,
    Seed,
    Shape,
    Target,
    TrustOption,
)
from flowopt.errors import UserError
from flowopt.recovery import defaults


def adapt(
    context: typer.Context,
    model: Model,
    swap_norm: SwapNorm = None,
    linearize: Linearize = None,
    recalibrate: Recalibrate = None,
    data: DataOption = None,
    held_out: HeldOut = "0.1",
    norms: Norms = "all",
    threshold: Threshold = 0.3,
    layers: Layers = "all",
    keep_softmax: KeepSoftmax = 0.0,
    keep_by: KeepBy = "entropy",
    length: Length = None,
    window: Window = None,
    chunk: Chunk = None,
    force: Force = False,
    padding: Padding = "auto",
    calibration: Calibration = 16,
    recover: Recover = None,
    transfer_steps: TransferSteps = defaults.TRANSFER_STEPS,
    transfer_lr: TransferLearningRate = defaults.TRANSFER_LEARNING_RATE,
    steps: Steps = defaults.STEPS,
    minutes: Minutes = None,
    lr: LearningRate = defaults.LEARNING_RATE,
    optimizer: OptimizerOption = defaults.OPTIMIZER,
    loss: Loss = defaults.LOSS,
    schedule: ScheduleOption = defaults.SCHEDULE,
    settle: Settle = defaults.SETTLE,
    patience: Patience = defaults.PATIENCE,
    feature_weight: FeatureWeight = defaults.FEATURE_WEIGHT,
    lora: Lora = defaults.LORA_RANK,
    output: Output = None,
    metric: MetricOption = None,
    min_cosine: MinCosine = None,
    min_agreement: MinAgreement = None,
    max_error: MaxError = None,
    max_drop: MaxDrop = None,
    target_weight: TargetWeight = 0.5,
    batch_size: BatchSize = None,
    most: Most = None,
    checkpoint: Checkpoint = None,
    resume: Resume = False,
    target: Target = "cpu",
    arch: Arch = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="DIR", show_default=False, help="The artifact's; else <name>.flowopt."),
    ] = None,
    form: Form = "parallel",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Judge norms or attention and stop; nothing is changed.")
    ] = False,
    no_timing: NoTiming = False,
    config: Config = None,
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
    """Swap a trained model's norms, linearize its attention, or recalibrate it, and recover its quality.

    This changes what the model computes. Norms or attentions are judged on your data first; those that a fixed scale,
    or attention of linear cost, stands in for are replaced, the model is trained to agree with its original, what was
    trained is frozen and folded into its layers, and the artifact's report says how far it is from the original on data
    that recovery never saw. --dry-run stops after the judgement.

    Exit codes: 0 adapted, 1 beyond the budget of --min-cosine, --min-agreement, --max-error or --max-drop (nothing is
    written), a loss that diverged, or a lowered file that differs from the adapted model; the others are those of
    flowopt optimize.

    \b
    Examples:
      flowopt adapt vit.pt2 --swap-norm unified --data images.npz --dry-run
      flowopt adapt vit.pt2 --swap-norm unified --data images.npz --metric accuracy:labels --max-drop 0.005 -o out
      flowopt adapt bert.pt2 --swap-norm power --norms best:6 --data my.texts:batches --minutes 30 --checkpoint state
      flowopt adapt lm.pt2 --linearize hedgehog --data tokens.npz --length 4096 --dry-run
      flowopt adapt lm.pt2 --linearize hybrid --window 32 --keep-softmax 0.25 --lora 8 --data tokens.npz -o out
      flowopt adapt cnn.pt2 --recalibrate select --data shifted.npz --metric accuracy:labels -o out
      torchrun --nproc-per-node 2 -m flowopt.cli.main adapt vit.pt2 --config adapt.toml

    \b
    A file, adapt.toml:
      swap-norm = "unified"
      data = "images.npz"
      steps = 1000
      output = ["logits"]
    """
    method = method_of({"swap_norm": swap_norm, "linearize": linearize, "recalibrate": recalibrate})
    if data is None:
        raise UserError("there is no data to measure and to train on", hint="--data images.npz, arrays by input name")
    refuse_options_of_others(context, method)
    options = load_options(trust, eval_mode, dynamic, factory, shape, inputs, limit)
    require_writable(json)

    from flowopt.cli.outcome import adapt_code
    from flowopt.cli.render import progress
    from flowopt.cli.render_adaptation import render_adaptation
    from flowopt.lowering.targets import target as target_named
    from flowopt.report.to_json import plain, to_json
    from flowopt.workflows.adapt import adapt as run
    from flowopt.workflows.adapting.budget import QualityBudget
    from flowopt.workflows.adapting.linear_choice import LinearChoice
    from flowopt.workflows.adapting.recovery_plan import RecoveryPlan

    target_named(target, arch)
    attention = {name: value for name, value in (("window", window), ("chunk", chunk)) if value is not None}
    if linearize is not None:
        LinearChoice(linearize, keep_softmax=keep_softmax, length=length, options=attention, form=form).require_known()
    budget = QualityBudget(min_cosine, min_agreement, max_error, max_drop)
    plan = RecoveryPlan.of(
        recover,
        steps=steps,
        minutes=minutes,
        lr=lr,
        optimizer=optimizer,
        loss=loss,
        schedule=schedule,
        settle=settle,
        patience=patience,
        feature_weight=feature_weight,
        lora=lora,
        transfer_steps=transfer_steps,
        transfer_lr=transfer_lr,
        checkpoint=checkpoint,
        resume=resume,
    )
    plan = plan.for_attention() if linearize is not None else plan.for_norms()
    with progress() as show:
        show(f"loading {model}")
        program = load_model(model, options)
        result = run(
            program,
            swap_norm=swap_norm,
            linearize=linearize,
            recalibrate=recalibrate,
            data=data,
            held_out=_share_or_file(held_out),
            batch_size=batch_size,
            most=most,
            norms=norms,
            threshold=threshold,
            layers=layers,
            keep_softmax=keep_softmax,
            keep_by=keep_by,
            length=length,
            attention=attention or None,
            force=force,
            padding=padding,
            calibration=calibration,
            recovery=plan,
            outputs=output or (),
            metric=metric,
            budget=budget,
            target_weight=target_weight,
            target=target,
            arch=arch,
            folder=out,
            form=form,
            dry_run=dry_run,
            timing=not no_timing,
            seed=seed,
            on_progress=show,
        )
    # Under torchrun the first process says it all.
    if os.environ.get("RANK", "0") != "0":
        raise typer.Exit(0)
    code = adapt_code(result.adaptation, result.report)
    written = result.artifact.folder if result.artifact is not None else None
    if json is not None:
        made = {"adaptation": plain(result.adaptation)} if result.report is None else plain(result.report)
        write_json(json, to_json(made | {"artifact": str(written) if written else None, "exit_code": code}))
    if json != STDOUT:
        render_adaptation(result.adaptation, result.report, model, written)
    raise typer.Exit(code)


def _share_or_file(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
