"""Turn the layer norms of a residual stream into RMS norms, by centring all that writes into the stream.

    layer_norm(x, gain, shift, eps)  =  rms_norm(C x, gain, eps) + shift        C x = x - mean(x)

C is linear. Where every writer is a layer, it goes into the layers (W -> C W, b -> C b), embeddings and stored vectors
(e -> C e), and nobody computes a mean any more. All norms of a stream change together; of readers that are no layer
norm none may be left, as they would see the difference.

Behind one writer that is no layer, a mean may be subtracted at run time, where two or more go for it.

Numerical effect: EXACT. Parameters are centred in float64 and rounded once; what that leaves of a mean is at most a
rounding of the vector. The same epsilon is added to the same mean of squares.

Refuses when:
    post-norm           a norm writes into the stream, and others read what it writes as it is (BERT's blocks)
    peri-norm           norms read the stream, and norms with a gain or a shift write into it, several times
    mixed-norm          the stream is read by norms of another kind too, or over other axes
    stream-tapped       the stream is read by something else than norms, or is an output of the model
    not-linear-writer   several writers are no layers, or one is none and there is a single norm: no mean would be saved
    quantized-weight    a writer's weight is computed from integers or 8-bit floats
    axis-mismatch       the norm covers more than the last axis
    dynamic-shape       the number of features is free, or one value holds features along two axes

A site is a stream whose norms turn, at its first norm; and each norm of other streams.

Attributes of the matched operators:
    layer_norm: input, weight, bias, eps used; normalized_shape checked to be one axis; cudnn_enable irrelevant: it
    picks a kernel. linear, embedding, convolutions: parameters used; groups checked to be 1; the others are kept.
    Between them: the operators of ``flowopt.analysis.stream_joins``.

Source: Jiang et al., "Pre-RMSNorm and Pre-CRMSNorm Transformers", section 4; Ashkboos et al., "SliceGPT", section 3.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from flowopt.analysis.quantized import quantized_source
from flowopt.analysis.streams import Placement, Stream, stream_of
from flowopt.ir.metadata import module_path, static_size
from flowopt.passes.fold._centred import Kind, centred, kind_of
from flowopt.passes.fold._layers import weight_and_bias
from flowopt.program.program import Program
from flowopt.rewrite import Edit, Exactness, RewritePass, Site

_aten = torch.ops.aten
# Of layer_norm where it is given none.
_EPSILON = 1e-5
_layer_norm, _rms_norm = _aten.layer_norm.default, _aten.rms_norm.default


@dataclass(frozen=True, slots=True)
class Writer:
    """A writer, the axis of its features, and how it is centred."""

    node: fx.Node
    axis: int
    kind: Kind


@dataclass(frozen=True, slots=True)
class Plan:
    """Centre ``writers``, repeat ``joins`` on what is centred, and turn ``norms``; ``sizes`` read only shapes."""

    writers: tuple[Writer, ...]
    joins: tuple[fx.Node, ...]
    norms: tuple[fx.Node, ...]
    sizes: tuple[fx.Node, ...]


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a stream stays: a refusal's code, message and node."""

    code: str
    message: str
    node: fx.Node | None = None


class FoldNormMean(RewritePass[Plan]):
    """Turn layer norms into RMS norms, by centring all that writes into their residual stream."""

    exactness: ClassVar[Exactness] = Exactness.EXACT
    anchors: ClassVar[tuple[Any, ...]] = (_layer_norm,)

    def sites(self, program: Program) -> list[fx.Node]:
        """One for each stream whose norms turn, and all norms of others."""
        found: list[fx.Node] = []
        turned: set[fx.Node] = set()
        for norm in super().sites(program):
            if norm in turned:
                continue
            found.append(norm)
            decided = _decided(norm)
            if isinstance(decided, Plan):
                turned.update(decided.norms)
        return found

    def check(self, site: Site) -> Plan:
        decided = _decided(site.node)
        if isinstance(decided, Obstacle):
            site.refuse(decided.code, decided.message, decided.node)
        return decided

    def rewrite(self, edit: Edit, plan: Plan) -> str:
        moved: dict[fx.Node, fx.Node] = {}
        writers = {writer.node: writer for writer in plan.writers}
        inside = {*plan.joins, *plan.norms}
        for node in sorted({*writers, *inside}):
            # What follows a value stands before the first operator that reads it.
            point = min((user for user in node.users if user in inside), default=node)
            value = node
            with edit.before(node):
                if node in plan.norms:
                    value = _rms_norm_of(edit, node, moved)
                    edit.replace(node, value)
                elif node not in writers:
                    moved[node] = edit.repeat(node, moved)
            if node in writers:
                writer = writers[node]
                with edit.before(node if writer.kind in (Kind.LAYER, Kind.STORED) else point):
                    moved[node] = moved[value] = centred(edit, value, writer.axis, writer.kind)
        for node in plan.sizes:
            with edit.before(node):
                edit.replace(node, edit.repeat(node, moved))
        return _summary(plan)


def _decided(norm: fx.Node) -> Plan | Obstacle:
    shape: Any = norm.args[1]
    source = norm.args[0]
    assert isinstance(source, fx.Node)
    if len(shape) != 1:
        return Obstacle("axis-mismatch", f"the norm covers {len(shape)} axes, a stream has features along one")
    if static_size(source, -1) is None:
        return Obstacle("dynamic-shape", "the number of features is not known at capture", source)
    stream = stream_of(source)
    if stream is None:
        return Obstacle("dynamic-shape", f"values joined with {source.name} hold features along two axes", source)
    writers = tuple(Writer(node, stream.axes[node], kind_of(node, stream.axes[node])) for node in stream.writers)
    obstacle = _reader_obstacle(stream, norm) or _writer_obstacle(stream, writers)
    if obstacle is not None:
        return obstacle
    norms = tuple(dict.fromkeys(reader.node for reader in stream.norms))
    return Plan(writers, stream.joins, norms, tuple(reader.node for reader in stream.sizes))


def _reader_obstacle(stream: Stream, norm: fx.Node) -> Obstacle | None:
    """Readers that would see that the stream is centred."""
    if norm not in {reader.node for reader in stream.norms}:
        return Obstacle("stream-tapped", "the norm reads the stream for its gain or shift too")
    other = next((reader.node for reader in stream.norms if reader.node.target is not _layer_norm), None)
    if other is not None:
        return Obstacle("mixed-norm", f"{_described(other)} reads the same stream, mean and all", other)
    taps = sorted(stream.taps, key=lambda tap: (tap.node.op == "output", tap.node))
    if not taps:
        return None
    tap = taps[0]
    if tap.node.op == "output":
        message = f"{tap.source.name}, of the norm's residual stream, is an output of the model"
        return Obstacle("stream-tapped", message, tap.source)
    reads = f"{_described(tap.node)} reads {tap.source.name}"
    if stream.placement is Placement.POST:
        behind = _described(stream.norm_writers[0])
        message = f"{behind} writes into the norm's residual stream, and {reads}, which is in it, without a norm"
        return Obstacle("post-norm", message, tap.node)
    message = f"{reads}, of the norm's residual stream, and is no norm over its features: it would see the mean go"
    return Obstacle("stream-tapped", message, tap.node)


def _writer_obstacle(stream: Stream, writers: tuple[Writer, ...]) -> Obstacle | None:
    """Writers that cannot be centred beforehand."""
    for writer in (one.node for one in writers if one.kind is Kind.LAYER):
        for parameter in weight_and_bias(writer):
            narrow = None if parameter is None else quantized_source(parameter)
            if narrow is not None:
                message = f"{_described(writer)} writes into the stream, its weight is computed from {narrow.target}"
                return Obstacle("quantized-weight", message, narrow)
    computed = [writer.node for writer in writers if writer.kind is Kind.COMPUTED]
    if not computed or (len(computed) == 1 and len(stream.norms) > 1):
        return None
    names = ", ".join(_described(node) for node in computed[:3])
    more = f" and {len(computed) - 3} more" if len(computed) > 3 else ""
    norms = _counted(len(stream.norms), "norm")
    message = f"{names}{more} would have to be centred at run time, to save the mean of {norms}"
    code = "peri-norm" if stream.placement is Placement.PERI else "not-linear-writer"
    return Obstacle(code, message, computed[0])


def _rms_norm_of(edit: Edit, norm: fx.Node, moved: dict[fx.Node, fx.Node]) -> fx.Node:
    source = norm.args[0]
    assert isinstance(source, fx.Node)
    given: list[Any] = list(norm.args[2:5])
    defaults: list[Any] = [None, None, _EPSILON]
    gain, shift, eps = [*given, *defaults[len(given) :]]
    new = edit.call(_rms_norm, moved[source], norm.args[1], gain, eps)
    return new if shift is None else edit.call(_aten.add.Tensor, new, shift)


def _summary(plan: Plan) -> str:
    layers = sum(writer.kind is Kind.LAYER for writer in plan.writers)
    stored = sum(writer.kind is Kind.STORED for writer in plan.writers)
    computed = [writer.node.name for writer in plan.writers if writer.kind is Kind.COMPUTED]
    centred_parts = f"{_counted(layers, 'layer')} and {_counted(stored, 'stored tensor')}"
    text = f"{_counted(len(plan.norms), 'norm')}; centred {centred_parts}"
    return text + (f"; {computed[0]} is centred at run time" if computed else "")


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count != 1 else ''}"


def _described(node: fx.Node) -> str:
    path = module_path(node)
    return f"{node.name} ({node.target}{f' in {path}' if path else ''})"
