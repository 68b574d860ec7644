"""Store the vectors of a centred residual stream without their last feature, which the others determine.

    rms_norm(x, eps), x of d features that add up to 0   ->   z / sqrt((sum(z^2) + sum(z)^2) / d + eps),  z = x[:d - 1]
    linear(y, W)                                          ->   linear(y[:d - 1], W[:, :d - 1] - W[:, d - 1:])

What writes into the stream loses its last output, what reads the norms its last input. It saves a d-th part of these
layers; against it, d - 1 is seldom a number that kernels like. Not part of a preset; runs after ``fold-norm-affine``
and ``fold-norm-mean``.

Numerical effect: EXACT. The last feature is minus the sum of the others, but for the rounding of stored weights.

Refuses when:
    not-centred             what writes into the stream has a mean
    unsupported-spelling    a norm of the stream has a gain yet, or no number for epsilon
    mixed-norm              the stream is read by norms of another kind, or over other axes, too
    stream-tapped           the stream is read by something else than norms, or is an output of the model
    not-linear-reader       a norm of the stream is read by something else than linear layers, or by nothing
    graph-output            a norm's output is an output of the model
    axis-mismatch           the norm covers more than the last axis, or a reader contracts parts of the features
    not-constant            a reader's weight is computed at run time, or state
    dynamic-shape           the number of features is free, or one value holds features along two axes
    no-gain                 the stream has one feature

A site is a stream whose norms are compressed, at its first norm; and each norm of other streams.

Attributes of the matched operators:
    rms_norm: input, eps used; weight checked to be missing; normalized_shape checked to be one axis.
    linear: input, weight, bias used. Writers and operators between: those of ``fold-norm-mean``; sizes that a reshape
    or an expansion is told are adapted.

Source: Jiang et al., "Pre-RMSNorm and Pre-CRMSNorm Transformers", section 4.2.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from flowopt.analysis.axes import feature_axis, follow
from flowopt.analysis.readers import readers
from flowopt.analysis.streams import Stream, stream_of
from flowopt.ir.metadata import recorded_tensor, sizes_as_text, static_size
from flowopt.passes.fold import _layers as layers
from flowopt.passes.fold._centred import Kind, is_centred, kind_of
from flowopt.program.program import Program
from flowopt.rewrite import Edit, Exactness, RewritePass, Site

_aten = torch.ops.aten
_rms_norm, _to_copy = _aten.rms_norm.default, _aten._to_copy.default
_SIZED = (_aten.view.default, _aten.reshape.default, _aten._unsafe_view.default, _aten.expand.default)
_SIZE_READERS = (_aten.sym_size.int,)


@dataclass(frozen=True, slots=True)
class Placed:
    """A node, and the axis of its output that holds the features."""

    node: fx.Node
    axis: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Compress a stream of ``size`` features.

    Attributes:
        size: number of features.
        writers: values from outside.
        joins: operators inside, in graph order.
        norms: norms.
        between: moves from norms to layers, in graph order.
        layers: linear layers that read the norms.
        sizes: readers of shapes alone.
    """

    size: int
    writers: tuple[Placed, ...]
    joins: tuple[Placed, ...]
    norms: tuple[Placed, ...]
    between: tuple[Placed, ...]
    layers: tuple[fx.Node, ...]
    sizes: tuple[fx.Node, ...]


class CompressRmsNorm(RewritePass[Plan]):
    """Store the vectors of a centred residual stream without their last feature."""

    exactness: ClassVar[Exactness] = Exactness.EXACT
    anchors: ClassVar[tuple[Any, ...]] = (_rms_norm,)

    def sites(self, program: Program) -> list[fx.Node]:
        """The first norm of every stream."""
        found: list[fx.Node] = []
        seen: set[fx.Node] = set()
        for norm in super().sites(program):
            source = norm.args[0]
            assert isinstance(source, fx.Node)
            if norm in seen:
                continue
            found.append(norm)
            stream = stream_of(source)
            seen.update(reader.node for reader in (stream.norms if stream is not None else ()))
        return found

    def check(self, site: Site) -> Plan:
        stream = _stream(site)
        norms = tuple(dict.fromkeys(reader.node for reader in stream.norms))
        for norm in norms:
            _require_bare(site, norm)
        for writer in stream.writers:
            is_right = is_centred(writer, stream.axes[writer], site.program.constant)
            site.require(is_right, "not-centred", f"{writer.name} ({writer.target}) may have a mean", writer)
        site.require(stream.size > 1, "no-gain", "the stream has one feature")
        between: dict[fx.Node, int] = {}
        linears: dict[fx.Node, None] = {}
        sizes = [reader.node for reader in stream.sizes]
        for norm in norms:
            _read(site, norm, between, linears, sizes)
        return Plan(
            size=stream.size,
            writers=tuple(Placed(node, stream.axes[node]) for node in stream.writers),
            joins=tuple(Placed(node, stream.axes[node]) for node in stream.joins),
            norms=tuple(Placed(norm, len(norm.meta["val"].shape) - 1) for norm in norms),
            between=tuple(Placed(node, axis) for node, axis in sorted(between.items())),
            layers=tuple(sorted(linears)),
            sizes=tuple(sizes),
        )

    def rewrite(self, edit: Edit, plan: Plan) -> str:
        smaller: dict[fx.Node, fx.Node] = {}
        writers = {placed.node: placed for placed in plan.writers}
        moves = {placed.node: placed for placed in (*plan.joins, *plan.between)}
        norms = {placed.node for placed in plan.norms}
        for node in sorted({*writers, *moves, *norms, *plan.layers}):
            if node in writers:
                smaller[node] = _written(edit, writers[node], plan)
                continue
            with edit.before(node):
                if node in norms:
                    smaller[node] = _compressed(edit, node, smaller, plan.size)
                elif node in moves:
                    smaller[node] = _moved(edit, moves[node], smaller, plan.size)
                else:
                    _read_smaller(edit, node, smaller)
        for node in plan.sizes:
            with edit.before(node):
                edit.replace(node, edit.repeat(node, smaller))
        return f"{len(plan.norms)} norms of {plan.size} features, {plan.size - 1} of them stored"


def _stream(site: Site) -> Stream:
    source, shape = site.node.args[:2]
    assert isinstance(source, fx.Node) and isinstance(shape, (list, tuple))
    site.require(len(shape) == 1, "axis-mismatch", f"the norm covers {len(shape)} axes")
    site.require(static_size(source, -1) is not None, "dynamic-shape", "the number of features is not known at capture")
    stream = stream_of(source)
    if stream is None:
        site.refuse("dynamic-shape", f"values joined with {source.name} hold features along two axes", source)
    other = next((r.node for r in stream.norms if r.node.target is not _rms_norm), None)
    message = f"{other.name if other else ''} ({other.target if other else ''}) reads the same stream"
    site.require(other is None, "mixed-norm", message, other)
    for tap in stream.taps:
        message = f"{tap.node.name} reads {tap.source.name}, of the stream, and is no norm over its features"
        site.refuse("stream-tapped", message, tap.node)
    return stream


def _require_bare(site: Site, norm: fx.Node) -> None:
    given: list[Any] = [*norm.args[2:4], None, None]
    gain, eps = given[:2]
    message = f"{norm.name} has a gain: run fold-norm-affine first"
    site.require(gain is None, "unsupported-spelling", message, norm)
    site.require(isinstance(eps, float), "unsupported-spelling", f"epsilon of {norm.name} is {eps}", norm)


def _read(
    site: Site, norm: fx.Node, between: dict[fx.Node, int], linears: dict[fx.Node, None], sizes: list[fx.Node]
) -> None:
    """Note the linear layers that read a norm, and the moves that lead to them."""
    at = feature_axis(norm, -1)
    assert at is not None  # the stream has a known number of features
    found = list(readers(norm, at))
    layers_found = [reader for reader in found if reader.node.target not in _SIZE_READERS]
    site.require(bool(layers_found), "not-linear-reader", f"nothing reads {norm.name} but its size", norm)
    sizes += [reader.node for reader in found if reader not in layers_found]
    for reader in found:
        previous, place = norm, at
        for node in reader.path:
            followed = follow(node, previous, place)
            assert followed is not None  # readers() came this way
            previous, place = node, followed
            between[node] = place.axis
    for reader in layers_found:
        node = reader.node
        site.require(node.op != "output", "graph-output", f"{norm.name} is an output of the model", norm)
        is_linear = (
            node.target is layers.LINEAR and node.args[0] is reader.source and reader.source not in node.args[1:]
        )
        message = f"{node.name} ({node.target}) reads {norm.name} and is no linear layer"
        site.require(is_linear, "not-linear-reader", message, node)
        is_whole = (reader.at.start, reader.at.stop) == (at.start, at.stop)
        is_last = reader.at.axis == len(sizes_as_text(reader.source)) - 1
        message = f"{node.name} does not contract whole vectors of {norm.name}"
        site.require(is_whole and is_last, "axis-mismatch", message, node)
        site.constant(node.args[1], f"the weight of {node.name}")
        linears[node] = None


def _written(edit: Edit, writer: Placed, plan: Plan) -> fx.Node:
    """A writer's value without its last feature."""
    node, kind = writer.node, kind_of(writer.node, writer.axis)
    if kind is Kind.STORED:
        value = edit.constant(node).narrow(writer.axis, 0, plan.size - 1)
        with edit.before(node):
            return edit.parameter(layers.parameter_name(node, node.name), value, like=node)
    if kind is not Kind.LAYER:
        inside = {placed.node for placed in (*plan.joins, *plan.norms)}
        with edit.before(min(user for user in node.users if user in inside)):
            return edit.call(_aten.slice.Tensor, node, writer.axis, 0, plan.size - 1)
    weight, bias = layers.weight_and_bias(node)
    along = 1 if node.target is layers.EMBEDDING else 0
    with edit.before(node):
        parameters = [
            None if p is None else edit.parameter(
                layers.parameter_name(p, f"{node.name}.{name}"),
                edit.constant(p).narrow(axis, 0, plan.size - 1),
                like=p,
            )
            for p, name, axis in ((weight, "weight", along), (bias, "bias", 0))
        ]  # fmt: skip
        assert parameters[0] is not None
        args, kwargs = layers.with_parameters(node, parameters[0], parameters[1])
        return edit.call(node.target, *args, **kwargs)


def _moved(edit: Edit, placed: Placed, smaller: dict[fx.Node, fx.Node], size: int) -> fx.Node:
    """A move or an addition of vectors with a feature less."""
    node = placed.node
    if node.target not in _SIZED:
        return edit.repeat(node, smaller)
    sizes: list[Any] = list(node.args[1])  # type: ignore[arg-type]  # sizes are a list
    if sizes[placed.axis] != -1:
        sizes[placed.axis] = size - 1
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return edit.call(node.target, smaller[source], sizes, *node.args[2:], **node.kwargs)


def _compressed(edit: Edit, norm: fx.Node, smaller: dict[fx.Node, fx.Node], size: int) -> fx.Node:
    """z / sqrt((sum(z^2) + sum(z)^2) / d + eps)."""
    source = norm.args[0]
    assert isinstance(source, fx.Node)
    stored = recorded_tensor(smaller[source])
    assert stored is not None
    is_narrow = stored.dtype not in (torch.float32, torch.float64)
    # As the operator does inside: sums of squares in 16 bits would be another norm.
    z = edit.call(_to_copy, smaller[source], dtype=torch.float32) if is_narrow else smaller[source]
    total = edit.call(_aten.sum.dim_IntList, z, [-1], True)
    squares = edit.call(_aten.sum.dim_IntList, edit.call(_aten.mul.Tensor, z, z), [-1], True)
    last = edit.call(_aten.mul.Tensor, total, total)
    mean = edit.call(_aten.div.Tensor, edit.call(_aten.add.Tensor, squares, last), size)
    root = edit.call(_aten.rsqrt.default, edit.call(_aten.add.Tensor, mean, norm.args[3]))
    normed = edit.call(_aten.mul.Tensor, z, root)
    return edit.call(_to_copy, normed, dtype=stored.dtype) if is_narrow else normed


def _read_smaller(edit: Edit, layer: fx.Node, smaller: dict[fx.Node, fx.Node]) -> None:
    """A linear layer of vectors whose last feature is minus the sum of the others."""
    weight, bias = layers.weight_and_bias(layer)
    source = layer.args[0]
    assert isinstance(source, fx.Node)
    value: Tensor = edit.constant(weight)
    new = edit.parameter(
        layers.parameter_name(weight, f"{layer.name}.weight"), value[:, :-1] - value[:, -1:], like=weight
    )
    args, kwargs = layers.with_parameters(layer, new, bias)
    edit.replace(layer, edit.call(layer.target, smaller[source], *args[1:], **kwargs))
