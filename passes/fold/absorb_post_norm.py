"""Absorb frozen per-channel maps inside of a residual stream into the layers around it, by keeping the stream scaled.

    h' = s * (h + f(h)) + t        h = p * z + c        z' = z + f'(z)        p' = s * p

z is kept in place of h: layers that read the stream get W diag(p) and b + W c, those that write into it diag(1/p) W and
(b - c) / p, and the map is gone. t goes into the bias of the writer before it; where others read what it would change,
into the biases of the readers. p is free where only layers write and read; it is 1 where something reads that is none.

The maps are products and sums with a stored vector, and batch norms in eval mode: what is left of PowerNorm, Unified
Normalization and norms of a fixed deviation, and the batch norm of graph Transformers.

A norm that is computed at run time sees scales. p is 1 at most of them; at others the map that is left stands before
the norm, and the summary counts it.

Numerical effect: EXACT. Parameters are computed in float64 and rounded once. What is kept has the magnitude of h / p:
of a dtype's range of exponents, p may take 0.7 (2^88 in float32), and in float16 2^-4 to 2^4. Where p is free it starts
at 1, or at a power of two for each channel that centres it, if that is needed to stay in the range; in float16 always.
Within it, float16 holds values of the stream from 2^-10 to 2^12. Beyond, what was finite may overflow where p is small,
and small values lose digits where it is large: no bound of a stream's values is known from the graph.

Refuses when:
    extreme-scale       a scale is zero or no number; p would leave its range; a changed parameter would overflow, or
                        lose digits to underflow
    mixed-scale         values are added that would need different scales (a sum of the value before a map and after)
    stream-tapped       something that is no linear layer and no norm reads the stream, or it is an output of the model,
                        where p cannot be 1; or values are scaled token by token that have a shift to be rid of
    not-linear-writer   values that are no layers and no norms are written into the stream where p cannot be 1
    padded-reader       a convolution pads with zeros, to which a shift would have to be added
    grows-too-much      a tensor that is read elsewhere too (a tied embedding, a layer that is called twice) would be
                        copied, and takes more bytes than ``max_growth``
    no-gain             as many maps would be left before norms as are absorbed
    dynamic-shape       channels of one value stand along two axes

A site is a stream whose maps are absorbed, at its first map; and each map that scales of other residual streams.

Attributes of the matched operators:
    mul, div, add, sub: both operands used, alpha used. _native_batch_norm_legit_no_training: input, weight, bias,
    running_mean, running_var, eps used; momentum irrelevant: it moves statistics in training only.
    linear, convolutions, embedding: parameters, groups used; padding checked where there is a shift; the others are
    kept. layer_norm, rms_norm, group_norm, instance_norm that write: weight, bias used; the others are kept.
    Between them: the operators of ``flowopt.analysis.stream_joins``; numbers of products used.

Source: Shen et al., "PowerNorm", section 4, and Yang et al., "Unified Normalization" (such norms in eval mode); Dwivedi
and Bresson, "A Generalization of Transformer Networks to Graphs", section 2 (batch norm behind residual sums); Ashkboos
et al., "SliceGPT", section 3 (changes of a stream's basis, there by rotations).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from flowopt.analysis.affine_streams import affine_stream
from flowopt.analysis.channel_steps import ChannelStep, channel_step
from flowopt.passes.fold._rescaled_stream import Rescaled, readers_of, rescaled, rewrite_stream
from flowopt.passes.fold._stream_basis import basis
from flowopt.passes.fold._stream_factors import ObstacleError, factors
from flowopt.passes.fold._stream_start import exponents_of, growth, start_of, unshifted_steps
from flowopt.program.program import Program
from flowopt.rewrite import Edit, Exactness, RewritePass, Site

_aten = torch.ops.aten
_BATCH_NORM = _aten._native_batch_norm_legit_no_training.default


@dataclass(frozen=True, slots=True)
class Plan:
    """Keep the stream of ``value`` scaled.

    Attributes:
        value: of the stream.
        axis: of its channels there.
        start: the value whose scale is 2 to the power of ``exponents``.
        exponents: one for every channel; empty where all are 0.
        unshifted: steps whose shift is zero.
    """

    value: fx.Node
    axis: int
    start: fx.Node
    exponents: tuple[int, ...]
    unshifted: tuple[fx.Node, ...]


class AbsorbPostNorm(RewritePass[Plan]):
    """Absorb frozen per-channel maps inside of a residual stream into the layers that write and read it.

    Attributes:
        max_growth: bytes by which the model may grow where tensors that are read elsewhere too have to be copied.
    """

    exactness: ClassVar[Exactness] = Exactness.EXACT
    anchors: ClassVar[tuple[Any, ...]] = (_aten.mul.Tensor, _aten.div.Tensor, _aten.sub.Tensor, _BATCH_NORM)
    max_growth: int = 1048576

    def sites(self, program: Program) -> list[fx.Node]:
        """One for each stream whose maps are absorbed, and all maps that scale of others."""
        found: list[fx.Node] = []
        seen: set[fx.Node] = set()
        for node in super().sites(program):
            step = _step_at(node)
            if step is None or node in seen:
                continue
            stream = affine_stream(step.value, step.axis)
            scales = (step,) if stream is None else stream.scales
            seen.update(one.node for one in scales)
            if stream is None or stream.is_residual:
                found += [one.node for one in scales[: 1 if self._is_absorbed(program, scales[0]) else None]]
        return sorted(found)

    def check(self, site: Site) -> Plan:
        step = _step_at(site.node)
        assert step is not None  # no rewrite at another site makes a constant a computed value
        try:
            return self._decided(site.program, step)
        except ObstacleError as obstacle:
            site.refuse(obstacle.code, obstacle.message, obstacle.node)

    def rewrite(self, edit: Edit, plan: Plan) -> str:
        found = _rescaled(plan, edit.constant)
        rewrite_stream(edit, found)
        return _summary(found)

    def _is_absorbed(self, program: Program, step: ChannelStep) -> bool:
        try:
            self._decided(program, step)
        except ObstacleError:
            return False
        return True

    def _decided(self, program: Program, step: ChannelStep) -> Plan:
        """The plan for a step's stream; raises ObstacleError where there is none."""
        stream = affine_stream(step.value, step.axis)
        if stream is None:
            raise ObstacleError("dynamic-shape", f"values joined with {step.value.name} hold channels along two axes")
        found, readers = factors(stream, program.constant), readers_of(stream)
        start, is_free = start_of(stream, found, readers)
        exponents = exponents_of(stream, found, start, is_free=is_free)
        plan = Plan(step.value, step.axis, start, exponents, unshifted_steps(stream, program.constant))
        result = _rescaled(plan, program.constant)
        left, absorbed = len(result.left), len(stream.scales)
        if left >= absorbed:
            message = f"{_counted(absorbed, 'map')} would go and {left} be left, before norms that read the stream"
            raise ObstacleError("no-gain", message)
        grown = growth(result, program.constant)
        if grown > self.max_growth:
            message = f"copies of shared tensors would take {grown:,} bytes; max_growth is {self.max_growth:,}"
            raise ObstacleError("grows-too-much", message)
        return plan


def _step_at(node: fx.Node) -> ChannelStep | None:
    """The step of a site; None for operators that are none, or scale nothing."""
    value = next(iter(node.users), node) if node.target is _BATCH_NORM else node
    step = channel_step(value)
    return step if step is not None and step.scales and step.node is node else None


def _rescaled(plan: Plan, constant: Callable[[fx.Node], Tensor]) -> Rescaled:
    stream = affine_stream(plan.value, plan.axis)
    assert stream is not None  # the plan was made for it
    found = factors(stream, constant)
    kept = basis(stream, found, plan.start, plan.exponents, frozenset(plan.unshifted), constant)
    return rescaled(kept, readers_of(stream))


def _summary(found: Rescaled) -> str:
    changes = _counted(len(found.changes), "layer"), _counted(len(found.stored), "stored tensor")
    text = f"{_counted(len(found.basis.stream.scales), 'map')}; scaled {' and '.join(changes)}"
    left = _counted(len(found.left), "map")
    return text + (f"; {left} left where the stream is read as it was" if found.left else "")


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count != 1 else ''}"
