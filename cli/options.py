"""Options that several commands share: name, placeholder, help."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Trust = Literal["data", "weights", "code"]

Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", show_default=False, help="A torch.export archive, or package.module:factory."),
]
Passes = Annotated[
    str,
    typer.Option(
        "--passes",
        metavar="PRESET|TEXT",
        help="A preset, or passes in order: name:option=value,name. See flowopt passes.",
    ),
]
TrustOption = Annotated[
    Trust,
    typer.Option("--trust", help="What files may do. An archive needs code: loading one can run code it holds."),
]
Eval = Annotated[
    bool, typer.Option("--eval", help="Capture a factory's model in train mode as it behaves in eval mode.")
]
Dynamic = Annotated[
    list[str] | None,
    typer.Option(
        "--dynamic",
        metavar="SPEC",
        show_default=False,
        help="Free dimension of a factory's inputs, as name=input:axis,input:axis:min..max. Repeatable.",
    ),
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Of the inputs that verification makes.")]
Json = Annotated[
    Path | None,
    typer.Option(
        "--json", metavar="FILE|-", show_default=False, help="Write the result as JSON; - is stdout, without tables."
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
