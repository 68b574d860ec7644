"""What a linear stand-in for one attention does to the outputs of the model, every other attention being softmax."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from flowopt.analysis.attention_sites import AttentionSite
from flowopt.errors import UserError
from flowopt.ir.evaluate import evaluate
from flowopt.ops.attention.in_place_of_softmax import InPlaceOfSoftmax
from flowopt.program.program import Program
from flowopt.recovery.losses import Distance, divergence, relative_error
from flowopt.recovery.padding import real_tokens

Batch = Mapping[str, Tensor]
_LOGITS = "logits"


def attention_effects(
    program: Program,
    sites: Sequence[AttentionSite],
    leaves: Mapping[str, InPlaceOfSoftmax],
    batches: Iterable[Batch],
    outputs: Collection[str],
    *,
    padding: str | None = None,
    on_progress: Callable[[str], None] = lambda _: None,
) -> dict[str, float]:
    """The effect of each stand-in alone, untrained: one walk per attention and batch, and one for the original.

    Where an output is called logits, it is KL(softmax(original) || softmax(changed)), mean over rows; else the relative
    error, root of the sum of squared differences over that of squares. Several outputs are averaged, several batches by
    their samples; where some outputs are logits, the others do not count.

    Args:
        program: never changed.
        sites: of this program; those without a stand-in are passed over.
        leaves: by the name of the site.
        batches: inputs by name.
        outputs: names of the floating ones that count.
        padding: as for ``measure_attention``; rows of outputs that belong to padding do not count.
        on_progress: gets one line per attention and batch.

    Raises:
        UserError: no batch, or inputs that the program does not take.

    Source: layers are chosen by KL in the hybrid distillation recipes of flash-linear-attention.
    """
    logits = [name for name in outputs if _LOGITS in name]
    names, distance = (logits, divergence()) if logits else (list(outputs), relative_error)
    measured = [site for site in sites if site.name in leaves]
    sums = {site.name: 0.0 for site in measured}
    samples = 0
    for at, batch in enumerate(batches):
        inputs = program.bind((), batch)
        masked = None if padding is None else ~real_tokens(inputs, padding)
        count = min((len(value) for value in batch.values() if value.dim()), default=1)
        samples += count
        wanted = program.run_named(inputs)
        for site in measured:
            on_progress(f"effect of {site.module or site.name}, batch {at + 1}")
            found = _with_stand_in(program, site, leaves[site.name], inputs)
            sums[site.name] += count * _mean_distance(distance, found, wanted, names, masked)
    if not samples:
        raise UserError("there is no calibration batch", hint="give data: at least one batch of the model's inputs")
    means = {name: total / samples for name, total in sums.items()}
    return means if logits else {name: math.sqrt(mean) for name, mean in means.items()}


def _with_stand_in(
    program: Program, site: AttentionSite, leaf: InPlaceOfSoftmax, inputs: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Outputs by name with one attention replaced."""
    arguments = [site.query, site.key, site.value]
    if site.mask is not None and site.has_padding:
        arguments.append(site.mask)
    held = {name: program.read(str(node.target)) for name in arguments if (node := program.node(name)).op == "get_attr"}

    def observe(node: fx.Node, value: Any) -> None:
        if node.name in arguments:
            held[node.name] = value

    def replaced(_: Any) -> Tensor:
        made: Tensor = leaf(*(held[name] for name in arguments))
        held.clear()
        return made

    values = evaluate(
        program.graph,
        program.read,
        inputs,
        raised=program.raised,
        override={site.name: replaced},
        observe=observe,
    )
    return {output.name: value for output, value in zip(program.outputs, values, strict=True)}


def _mean_distance(
    distance: Distance,
    found: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    names: Sequence[str],
    masked: Tensor | None,
) -> float:
    return float(torch.stack([distance(found[name], wanted[name], masked) for name in names]).mean())
