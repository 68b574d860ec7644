"""Run a program whose batch norms normalise by other statistics than those they store."""

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from flowopt.analysis.channel_statistics import ChannelStatistics
from flowopt.analysis.norm_parts import NormKind, NormParts, gain_and_shift, norm_parts
from flowopt.errors import UserError
from flowopt.ir.evaluate import Value, evaluate
from flowopt.program.program import Program

# Of a norm and what it reads: the statistics that it is to normalise by.
Choice = Callable[[NormParts, Tensor], ChannelStatistics]


def batch_norms(program: Program) -> tuple[NormParts, ...]:
    """The eval-mode batch norms of a program, in graph order.

    Raises:
        UserError: there is none.
    """
    parts = (norm_parts(node) for node in program.graph.nodes)
    found = tuple(p for p in parts if p is not None and p.kind is NormKind.BATCH)
    if not found:
        raise UserError(
            "the model has no batch norm with running statistics in eval mode",
            why="there are no statistics to measure again; or fold-batch-norm has folded them",
            hint="measure before folding, after canonicalize-aten",
        )
    return found


def run_with_statistics(program: Program, inputs: Mapping[str, Tensor], choose: Choice) -> dict[str, Tensor]:
    """Every output by name, with the statistics that ``choose`` names for each batch norm, in graph order.

    Args:
        program: never changed.
        inputs: by name.
        choose: is asked once for each norm, when what it reads is known.

    Raises:
        UserError: the inputs do not fit, or there is no batch norm.
    """
    norms = batch_norms(program)
    left = Counter(parts.source.name for parts in norms)
    held: dict[str, Tensor] = {}

    def observe(node: fx.Node, value: Value) -> None:
        if node.name in left:
            held[node.name] = value

    def normalised(parts: NormParts, own: Any) -> Any:
        name = parts.source.name
        left[name] -= 1
        x = held[name] if left[name] else held.pop(name)
        return (_normalised(program, parts, x, choose(parts, x)), *own[1:])

    values = evaluate(
        program.graph,
        program.read,
        program.bind((), inputs),
        raised=program.raised,
        override={parts.norm.name: partial(normalised, parts) for parts in norms},
        observe=observe,
    )
    return {output.name: value for output, value in zip(program.outputs, values, strict=True)}


def _normalised(program: Program, parts: NormParts, x: Tensor, statistics: ChannelStatistics) -> Tensor:
    gain, shift = gain_and_shift(parts, program.constant)
    scale = gain.to(x.device) * torch.rsqrt(statistics.variance.to(x.device) + parts.eps)
    moved = shift.to(x.device) - scale * statistics.mean.to(x.device)
    shape = [-1 if axis == parts.axis else 1 for axis in range(x.dim())]
    return (x.to(torch.float64) * scale.reshape(shape) + moved.reshape(shape)).to(x.dtype)
