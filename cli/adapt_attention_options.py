"""Options of ``flowopt adapt --linearize``: name, placeholder, help."""

from typing import Annotated, Literal

import typer

Linearize = Annotated[
    str | None,
    typer.Option(
        "--linearize",
        metavar="NAME",
        show_default=False,
        help="Replace softmax attention by one whose cost is linear in the length: hybrid, hedgehog, flow, ...",
    ),
]
Layers = Annotated[
    str,
    typer.Option("--layers", metavar="TEXT", help="Attentions: all; positions as 0,2,4-7; or paths as encoder.*.attn"),
]
KeepSoftmax = Annotated[
    float,
    typer.Option(
        "--keep-softmax", metavar="SHARE", min=0.0, help="Share of the layers that keep softmax attention, below 1."
    ),
]
KeepBy = Annotated[
    Literal["entropy", "effect"],
    typer.Option(
        "--keep-by",
        help="Which those are: of the least entropy, or of the largest effect on the outputs when linearized alone.",
    ),
]
Length = Annotated[
    int | None,
    typer.Option(
        "--length",
        metavar="N",
        min=2,
        show_default=False,
        help="Tokens that speed is judged at; those of the captured example by default.",
    ),
]
Window = Annotated[
    int | None,
    typer.Option("--window", metavar="N", min=1, show_default=False, help="Of hybrid: nearest keys, with softmax; 64."),
]
Chunk = Annotated[
    int | None,
    typer.Option(
        "--chunk", metavar="N", min=1, show_default=False, help="Tokens in a chunk, 64: of chunk-hybrid, with softmax."
    ),
]
TransferSteps = Annotated[
    int, typer.Option("--transfer-steps", metavar="N", min=1, help="Of the optimizer, for each attention alone.")
]
TransferLearningRate = Annotated[
    float, typer.Option("--transfer-lr", metavar="RATE", help="Its learning rate at first; it falls to 0.")
]
Lora = Annotated[
    int,
    typer.Option(
        "--lora",
        metavar="RANK",
        min=0,
        help="Distil by matrices of this rank, added to the layers around attention; 0: all weights.",
    ),
]
