"""Recognize the channel half of batch-channel normalization as the group norm that it is.

    reshape(batch_norm(reshape(x, [1, N G, -1]), training=True), [N, G, -1]) * g + b, reshaped as x
        ->  group_norm(x, G, g, b)                      g, b of a group repeated for its C / G channels

Every row of the first reshape is one group of channels of one sample, so the "batch" that the inner norm takes its
statistics from is that group alone. Spelt as a batch norm it cannot be told from one that depends on the other samples;
spelt as a group norm runtimes have a kernel for it. The outer half, an eval-mode batch norm, is ``fold-batch-norm``'s.

Numerical effect: EXACT. The same mean, biased variance and epsilon of the same numbers; kernels may add in another
order, and apply gain and shift in another.

Refuses when:
    batch-statistics        the norm's rows are not single samples' own: it normalises over the batch
    train-mode              the norm moves running statistics: it was captured in train mode
    axis-mismatch           the rows are no groups of whole channels, or the result is not laid out as the input
    dynamic-shape           the number of channels or of groups is free
    multiple-readers        a value on the way, or a saved statistic, is read elsewhere too
    graph-output            a value on the way is an output of the model
    not-constant            the gain or shift is computed at run time, or state
    unsupported-spelling    the norm has a gain and shift of each row; a gain or shift that is neither one number nor
                            one per group, or of another dtype; an eval-mode norm before canonicalize-aten
    missing-metadata        a node without recorded shape

Attributes of the matched operators:
    batch norms: input, eps used; weight, bias, running_mean, running_var checked to be missing; training checked;
    momentum irrelevant without running statistics; cudnn_enabled irrelevant: it picks a kernel.
    reshapes: sizes used. mul, add: operands used; alpha checked to be 1.

Source: Qiao et al., "Rethinking Normalization and Elimination Singularity in Neural Networks", section 4.
"""

import math
import operator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from flowopt.analysis.linear_sums import RESHAPES, is_per_feature
from flowopt.ir.constants import is_parameter_only
from flowopt.ir.metadata import recorded_tensor, sizes_as_text, static_size
from flowopt.rewrite import Edit, Exactness, RewritePass, Site

_aten = torch.ops.aten
_WITHOUT_STATISTICS = _aten._native_batch_norm_legit.no_stats
# (input, gain, shift, running mean, running variance, training, momentum, eps)
_WITH_STATISTICS = (
    _aten.batch_norm.default,
    _aten.native_batch_norm.default,
    _aten._native_batch_norm_legit_functional.default,
)


@dataclass(frozen=True, slots=True)
class Plan:
    """``value`` is the group norm of ``x``; ``gain`` and ``shift`` are stored tensors or numbers, or None."""

    x: fx.Node
    groups: int
    gain: fx.Node | float | None
    shift: fx.Node | float | None
    eps: float
    value: fx.Node


class RecognizeBatchChannelNorm(RewritePass[Plan]):
    """Recognize the channel half of batch-channel normalization as the group norm that it is."""

    exactness: ClassVar[Exactness] = Exactness.EXACT
    anchors: ClassVar[tuple[Any, ...]] = (_WITHOUT_STATISTICS, *_WITH_STATISTICS)

    def check(self, site: Site) -> Plan:
        eps = _epsilon(site)
        rows = site.node.args[0]
        assert isinstance(rows, fx.Node)
        by_sample = rows.target in RESHAPES and sizes_as_text(rows)[:1] == ("1",) and len(sizes_as_text(rows)) == 3
        site.require(by_sample, "batch-statistics", f"{rows.name} has no row of its own for each sample", rows)
        x = rows.args[0]
        assert isinstance(x, fx.Node)
        value = _only_reader(site, _normalised(site), RESHAPES, "axis-mismatch", "lays the groups out again")
        groups = _groups(site, x, rows, value)
        # Gain and shift belong to groups where the value has one row for each, and to channels where it is as ``x``.
        is_done = sizes_as_text(value) == sizes_as_text(x)
        axis = 1 - site.recorded(x).dim() if is_done else -2
        operands: dict[Any, fx.Node | float | None] = {_aten.mul.Tensor: None, _aten.add.Tensor: None}
        for target in operands:
            reader = next(iter(value.users))
            if reader.target is target and (not is_done or _absorbs(value, reader, axis)):
                operands[target] = _operand(site, _only_reader(site, value, (target,), "", ""), value, axis)
                value = reader
        if not is_done:
            value = _only_reader(site, value, RESHAPES, "axis-mismatch", f"lays the result out as {x.name}")
        as_input = sizes_as_text(value) == sizes_as_text(x)
        site.require(as_input, "axis-mismatch", f"{value.name} is not laid out as {x.name}", value)
        same_type = site.recorded(value).dtype == site.recorded(x).dtype
        site.require(same_type, "unsupported-spelling", f"{value.name} has another dtype than {x.name}", value)
        return Plan(x, groups, operands[_aten.mul.Tensor], operands[_aten.add.Tensor], eps, value)

    def rewrite(self, edit: Edit, plan: Plan) -> str:
        with edit.before(plan.value):
            gain = _per_channel(edit, plan.gain, plan.x, "weight")
            shift = _per_channel(edit, plan.shift, plan.x, "bias")
            edit.replace(plan.value, edit.call(_aten.group_norm.default, plan.x, plan.groups, gain, shift, plan.eps))
        return f"{edit.anchor.target} over {plan.groups} groups -> aten.group_norm"


def _epsilon(site: Site) -> float:
    args: tuple[Any, ...] = site.node.args
    if site.node.target is _WITHOUT_STATISTICS:
        (_, gain, shift, training, _, eps) = args
    else:
        (_, gain, shift, mean, variance, training, _, eps) = args[:8]
        kept = mean is not None or variance is not None
        site.require(not (kept and training), "train-mode", "the norm moves its running statistics")
    site.require(training is True, "unsupported-spelling", "the norm is in eval mode: run canonicalize-aten first")
    plain = gain is None and shift is None
    site.require(plain, "unsupported-spelling", "the norm has a gain and a shift of each row, which are of one sample")
    return float(eps)


def _normalised(site: Site) -> fx.Node:
    """The node that carries the norm's first result."""
    if isinstance(site.node.meta.get("val"), Tensor):
        return site.node
    extra = [u for u in site.node.users if u.target is not operator.getitem or u.args[1] != 0]
    site.require(not extra, "multiple-readers", "the norm's saved statistics are read", *extra[:1])
    return next(iter(site.node.users))


def _only_reader(site: Site, node: fx.Node, targets: tuple[Any, ...], code: str, what: str) -> fx.Node:
    is_output = any(user.op == "output" for user in node.users)
    site.require(not is_output, "graph-output", f"{node.name} is an output of the model", node)
    site.require(len(node.users) == 1, "multiple-readers", f"{node.name} is read {len(node.users)} times", node)
    reader = next(iter(node.users))
    if reader.target not in targets:
        site.refuse(code, f"{reader.name} ({reader.target}) reads {node.name}; nothing {what}", reader)
    return reader


def _groups(site: Site, x: fx.Node, rows: fx.Node, value: fx.Node) -> int:
    """How many groups a sample has; refuses unless each row of ``rows`` is one group of whole channels."""
    site.recorded(x)
    source, found = sizes_as_text(x), sizes_as_text(value)
    channels = static_size(x, 1)
    is_grouped = len(found) == 3 and (found[0], found[2]) == (source[0], sizes_as_text(rows)[2])
    groups = static_size(value, 1) if is_grouped else None
    if not is_grouped:
        as_input = found == source
        site.require(
            as_input, "axis-mismatch", f"{value.name} has one row for neither each group nor each channel", value
        )
        sample = [static_size(x, axis) for axis in range(1, len(source))]
        length = static_size(rows, 2)
        if length is not None and None not in sample:
            groups, rest = divmod(math.prod(size for size in sample if size is not None), length)
            site.require(rest == 0, "axis-mismatch", f"rows of {length} values are no part of a sample", rows)
    if channels is None or groups is None:
        site.refuse("dynamic-shape", "the number of channels or of groups is not known at capture", rows)
    whole = channels % groups == 0
    site.require(whole, "axis-mismatch", f"{groups} groups share {channels} channels unequally", rows)
    return groups


def _absorbs(value: fx.Node, reader: fx.Node, axis: int) -> bool:
    """True when a product or sum that may stay beside the norm can go into it as well."""
    others = [a for a in reader.args[:2] if a is not value]
    if len(value.users) != 1 or len(others) != 1 or reader.kwargs.get("alpha", 1) != 1:
        return False
    before, after = recorded_tensor(value), recorded_tensor(reader)
    keeps = before is not None and after is not None and before.dtype == after.dtype
    return keeps and all(
        not isinstance(a, fx.Node) or (is_parameter_only(a) and is_per_feature(a, reader, axis)) for a in others
    )


def _operand(site: Site, node: fx.Node, value: fx.Node, axis: int) -> fx.Node | float:
    """The other operand of a product or sum with ``value``."""
    alpha: Any = node.kwargs.get("alpha", 1)
    site.require(alpha == 1, "unsupported-spelling", f"{node.name} scales what it adds", node)
    others = [a for a in node.args[:2] if a is not value]
    other = others[0] if others else value
    if not isinstance(other, fx.Node):
        assert isinstance(other, (int, float))
        return other
    stored = is_parameter_only(other)
    site.require(stored, "not-constant", f"{other.name} is not a stored tensor", other)
    fits = is_per_feature(other, node, axis)
    site.require(fits, "unsupported-spelling", f"{other.name} holds neither one number nor one per group", other)
    return other


def _per_channel(edit: Edit, operand: fx.Node | float | None, x: fx.Node, kind: str) -> fx.Node | None:
    """Store one number for each channel of ``x``, out of one for each group or one for all."""
    channels = static_size(x, 1)
    if operand is None or channels is None:
        return None
    name = f"{edit.anchor.name}.{kind}"
    if isinstance(operand, fx.Node):
        name = str(operand.target) if operand.op == "get_attr" else name
        values = edit.constant(operand).flatten()
    else:
        values = torch.tensor([operand], dtype=torch.float64)
    return edit.parameter(name, values.repeat_interleave(channels // values.numel()), like=x)
