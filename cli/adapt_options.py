"""Options of ``flowopt adapt``: name, placeholder, help."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from flowopt.cli.config_file import config_callback

SwapNorm = Annotated[
    Literal["unified", "power", "frozen", "batch", "rms"] | None,
    typer.Option("--swap-norm", show_default=False, help="Replace norms; all but rms become a fixed scale and shift."),
]
Recalibrate = Annotated[
    Literal["reestimate", "alpha-bn", "select", "freeze"] | None,
    typer.Option(
        "--recalibrate",
        show_default=False,
        help="Batch norms get the data's statistics, a mixture, or what is best; freeze: norms of test time.",
    ),
]
DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="FILE|DIR|PKG.MODULE:NAME",
        show_default=False,
        help="Arrays by input name: .npz, .safetensors, a folder of them, or a function that gives batches.",
    ),
]
HeldOut = Annotated[
    str,
    typer.Option("--held-out", metavar="SHARE|FILE", help="Share of the data that is kept to judge on, or other data."),
]
BatchSize = Annotated[
    int | None, typer.Option("--batch-size", metavar="N", min=1, show_default=False, help="Samples in a batch; 32.")
]
Most = Annotated[
    int | None, typer.Option("--most", metavar="N", min=1, show_default=False, help="Samples to use, of all.")
]
Norms = Annotated[
    str,
    typer.Option("--norms", metavar="TEXT", help="all; best:6; positions as 0,2,4-7; or paths as encoder.*.norm1"),
]
Threshold = Annotated[
    float, typer.Option("--threshold", metavar="SCORE", min=0.0, help="Norms with a larger score are refused.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace norms above the threshold, and slower attention, too.")]
Padding = Annotated[
    str,
    typer.Option(
        "--padding", metavar="auto|none|[not:]INPUT", help="Input that is 1 where a token is real; not: padding."
    ),
]
Calibration = Annotated[
    int, typer.Option("--calibration", metavar="N", min=1, help="Batches that norms or attentions are measured on.")
]
Recover = Annotated[
    str | None,
    typer.Option(
        "--recover",
        metavar="TEXT",
        show_default="ridge,distill; with --linearize transfer,distill",
        help="Steps of recovery in order, of norms ridge, match, distill, of attention transfer, distill; or none.",
    ),
]
Steps = Annotated[int, typer.Option("--steps", metavar="N", min=1, help="Of distillation.")]
Minutes = Annotated[
    float | None,
    typer.Option("--minutes", metavar="M", min=0.0, show_default=False, help="Distillation ends after so long."),
]
LearningRate = Annotated[float, typer.Option("--lr", metavar="RATE", help="Largest learning rate of distillation.")]
OptimizerOption = Annotated[Literal["adamw", "adamp", "sgdp"], typer.Option("--optimizer", help="Of distillation.")]
Loss = Annotated[
    str,
    typer.Option(
        "--loss",
        metavar="mse|kl|cosine|PKG.MODULE:NAME",
        help="Of distillation: between outputs of the original and of the adapted model.",
    ),
]
Patience = Annotated[
    int,
    typer.Option(
        "--patience",
        metavar="N",
        min=0,
        help="Distillation ends after N of ten evaluations without improvement; 0: never.",
    ),
]
FeatureWeight = Annotated[
    float,
    typer.Option(
        "--feature-weight",
        metavar="W",
        min=0.0,
        help="Of the error of values beside the loss: of norms, or of attention.",
    ),
]
Settle = Annotated[
    float,
    typer.Option(
        "--settle", metavar="SHARE", min=0.0, max=1.0, help="Share of the steps, the last, with frozen statistics."
    ),
]
ScheduleOption = Annotated[
    Literal["all", "one-at-a-time"],
    typer.Option(
        "--schedule", help="Replace all norms, or attentions, at once, or one after another while distilling."
    ),
]
Output = Annotated[
    list[str] | None,
    typer.Option("--output", metavar="NAME", show_default=False, help="An output that counts; all by default."),
]
MetricOption = Annotated[
    str | None,
    typer.Option(
        "--metric",
        metavar="accuracy:ARRAY|PKG.MODULE:NAME",
        show_default=False,
        help="Your figure of quality, the larger the better, on held-out data before and after.",
    ),
]
MinCosine = Annotated[
    float | None,
    typer.Option("--min-cosine", metavar="C", show_default=False, help="Budget: mean cosine with the original."),
]
MinAgreement = Annotated[
    float | None,
    typer.Option("--min-agreement", metavar="SHARE", show_default=False, help="Budget: rows with the same largest."),
]
MaxError = Annotated[
    float | None,
    typer.Option("--max-error", metavar="E", show_default=False, help="Budget: relative error of an output."),
]
MaxDrop = Annotated[
    float | None,
    typer.Option("--max-drop", metavar="D", show_default=False, help="Budget: loss of the metric, in its own unit."),
]
TargetWeight = Annotated[
    float,
    typer.Option(
        "--target-weight", metavar="W", min=0.0, max=1.0, help="Of the data's statistics in those of alpha-bn."
    ),
]
Checkpoint = Annotated[
    Path | None,
    typer.Option("--checkpoint", metavar="FILE", show_default=False, help="Where distillation saves its state."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint.")]
NoTiming = Annotated[bool, typer.Option("--no-timing", help="Do not measure latency beside the original's artifact.")]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE.toml",
        is_eager=True,
        callback=config_callback("adapt", 'swap-norm = "unified"'),
        show_default=False,
        help="These options in a file; those given here win.",
    ),
]
