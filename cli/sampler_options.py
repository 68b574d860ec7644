"""Options of ``flowopt sampler`` alone: name, placeholder, help."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from flowopt.cli.sampler_file import read_config
from flowopt.cli.sampler_parsing import GuidanceOrder

FormName = Literal["auto", "scan", "loop", "function", "copies"]

Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE.toml",
        show_default=False,
        callback=read_config,
        is_eager=True,
        help="These options in a file: keys are their names. Those of the command line win.",
    ),
]
Solver = Annotated[
    str | None,
    typer.Option(
        "--solver",
        metavar="NAME[:ARG]",
        show_default=False,
        help="euler, heun, midpoint, rk4, ab2, ddim, dpmpp-2m, unipc, ...",
    ),
]
Steps = Annotated[int | None, typer.Option("--steps", metavar="N", show_default=False, help="How many.")]
Schedule = Annotated[
    str | None,
    typer.Option(
        "--schedule",
        metavar="NAME[:NUMBER]|TIMES",
        show_default=False,
        help="uniform, shift:3, shift-mu:1.15, karras, trailing, leading, or 1,0.8,0.3,0; else the convention's.",
    ),
]
ConventionOption = Annotated[
    str | None,
    typer.Option(
        "--convention",
        metavar="NAME",
        show_default=False,
        help="Whose network it is: diffusers-flow, sit, stable-diffusion, edm, ...",
    ),
]
Scheduler = Annotated[
    Path | None,
    typer.Option(
        "--scheduler",
        metavar="DIR|FILE.json",
        show_default=False,
        help="Instead of the three: a scheduler that diffusers saved. Read as data, from this machine.",
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        show_default=False,
        help="Change the convention, the solver or the scheduler: time_scale=1, eta=0.5, mu=1.15. Repeatable.",
    ),
]
Guidance = Annotated[
    str | None,
    typer.Option(
        "--guidance",
        metavar="cfg:SCALE",
        show_default=False,
        help="u + SCALE (c - u), 1 is none; cfg-original: c + SCALE (c - u). SCALE: 4; 1,4,4,1 per evaluation; input.",
    ),
]
Unconditional = Annotated[
    list[str] | None,
    typer.Option(
        "--unconditional",
        metavar="NAME=NUMBER",
        show_default=False,
        help="What fills a condition that is left out; else it is an input, unconditional_NAME. Repeatable.",
    ),
]
GuidanceChannels = Annotated[
    int | None,
    typer.Option("--guidance-channels", metavar="N", show_default=False, help="Guide only the first N."),
]
GuidanceOrderOption = Annotated[
    GuidanceOrder | None,
    typer.Option("--guidance-order", show_default=False, help="Of the halves of the batch; the first as diffusers."),
]
FormOption = Annotated[
    FormName,
    typer.Option(
        "--form", help="How the loop is written; auto: scan, with TVM function, and copies where the steps are few."
    ),
]
Sample = Annotated[
    str | None,
    typer.Option("--sample", metavar="NAME", show_default=False, help="The network's input, where it cannot be told."),
]
Time = Annotated[
    list[str] | None,
    typer.Option("--time", metavar="NAME", show_default=False, help="Likewise; twice for networks of two times."),
]
Prediction = Annotated[
    str | None,
    typer.Option("--prediction", metavar="NAME", show_default=False, help="The output, where there are several."),
]
OutputScale = Annotated[float, typer.Option("--output-scale", metavar="X", help="Multiplies the sample.")]
OutputShift = Annotated[float, typer.Option("--output-shift", metavar="X", help="Is added behind it.")]
Clamp = Annotated[
    str | None,
    typer.Option("--clamp", metavar="LOW..HIGH", show_default=False, help="Limits the sample in the end: -1..1."),
]
