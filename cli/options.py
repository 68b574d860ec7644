"""Options that several commands share: name, placeholder, help."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Trust = Literal["data", "weights", "code"]

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        show_default=False,
        help="A file (torch.export archive, state dict, safetensors, pickled module), or package.module:factory.",
    ),
]
Passes = Annotated[
    str,
    typer.Option(
        "--passes",
        metavar="PRESET|TEXT|FILE.toml",
        help="A preset, passes in order (name:option=value,name), or a file. See flowopt passes --help.",
    ),
]
TrustOption = Annotated[
    Trust,
    typer.Option(
        "--trust", help="What files may do: nothing; hold pickled weights; run code (pickled modules, torch's loader)."
    ),
]
Eval = Annotated[bool, typer.Option("--eval", help="Capture a model in train mode as it behaves in eval mode.")]
Dynamic = Annotated[
    list[str] | None,
    typer.Option(
        "--dynamic",
        metavar="SPEC",
        show_default=False,
        help="Free dimension of the inputs, as name=input:axis,input:axis:min..max. Repeatable.",
    ),
]
Factory = Annotated[
    str | None,
    typer.Option(
        "--factory",
        metavar="PKG.MODULE:NAME",
        show_default=False,
        help="Builds the model that a file of weights belongs to.",
    ),
]
Shape = Annotated[
    list[str] | None,
    typer.Option(
        "--shape",
        metavar="NAME=SIZES",
        show_default=False,
        help="Example input, as x=1x3x224x224 or ids=1x128:int64[0..30521]. Repeatable.",
    ),
]
Inputs = Annotated[
    Path | None,
    typer.Option("--inputs", metavar="FILE.npz", show_default=False, help="Example inputs, as arrays by name."),
]
Limit = Annotated[
    list[str] | None,
    typer.Option(
        "--limit",
        metavar="NAME=VALUE",
        show_default=False,
        help="What reading MODEL may cost: memory and json in bytes (8GB), seconds, nodes, members, depth. Repeatable.",
    ),
]
TargetName = Literal["cpu", "cuda", "torch", "tvm", "tvm-cuda"]
Target = Annotated[
    TargetName,
    typer.Option("--target", help="cpu, cuda: ONNX; torch: a .pt2; tvm, tvm-cuda: a library that needs no torch."),
]
Arch = Annotated[
    str | None,
    typer.Option(
        "--arch",
        metavar="NAME",
        show_default=False,
        help="For tvm-cuda, as sm_90; for tvm the processor as LLVM names it, as x86-64-v3, else this one.",
    ),
]
Level = Annotated[
    Literal["quick", "full"],
    typer.Option(
        "--level",
        help="Four named cases; or the whole battery of inputs, stressed weights and the candidate's behaviour.",
    ),
]
CaseBudget = Annotated[
    float,
    typer.Option(
        "--case-budget", metavar="TFLOP", min=0.0, help="A case that costs the original more is skipped and named."
    ),
]
DEFAULT_CASE_BUDGET = 2.0
Seed = Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Of the inputs that verification makes.")]
Json = Annotated[
    Path | None,
    typer.Option(
        "--json", metavar="FILE|-", show_default=False, help="Write the result as JSON; - is stdout, without tables."
    ),
]
BaselineOption = Annotated[
    Path | None,
    typer.Option(
        "--baseline",
        metavar="REPORT.json",
        show_default=False,
        help="Exit 4 if anything is worse than in this report of an earlier optimize.",
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Form = Annotated[
    Literal["parallel", "recurrent"],
    typer.Option("--form", help="recurrent: a causal model as a step, one token in and out, with explicit state."),
]
