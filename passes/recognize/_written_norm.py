"""Norms that are written out: what stands between a mean of squares and the value that its root scales.

Functions of a site at the root, which refuse where the spelling is another one.
"""

import math
from typing import Any, NoReturn

import torch
from torch import fx

from flowopt.analysis.norm_affine import feature_vector
from flowopt.ir.metadata import recorded_tensor, sizes_as_text, static_size
from flowopt.rewrite import Site

_aten = torch.ops.aten
_PRODUCT, _QUOTIENT, _SUM = _aten.mul.Tensor, _aten.div.Tensor, _aten.sum.dim_IntList
MEANS = (_aten.mean.dim, _SUM)
VARIANCES = (_aten.var.correction, _aten.var.dim)


def epsilon_below(site: Site, *, or_variance: bool = False) -> tuple[fx.Node, float]:
    """The mean of squares below the root, or the variance where that may stand for it, and what is added to it."""
    total = site.node.args[0]

    def is_below(node: object) -> bool:
        return is_mean(node) or (or_variance and isinstance(node, fx.Node) and node.target in VARIANCES)

    if not isinstance(total, fx.Node) or total.target is not _aten.add.Tensor:
        if is_below(total):
            site.refuse("unsupported-spelling", f"no epsilon is added to {total} before the root")
        site.refuse("not-a-norm", f"the root is of {total}, not of a mean of squares plus epsilon")
    means = [a for a in total.args[:2] if is_below(a)]
    if len(means) != 1:
        site.refuse("not-a-norm", f"{total.name} adds no epsilon to a mean of squares", total)
    (mean,) = means
    assert isinstance(mean, fx.Node)
    require_only_reader(site, total)
    alpha: Any = total.kwargs.get("alpha", 1)
    site.require(alpha == 1, "unsupported-spelling", f"{total.name} scales what it adds", total)
    other = total.args[1] if total.args[0] is mean else total.args[0]
    if isinstance(other, fx.Node):
        stored = site.constant(other, "epsilon")
        same = sizes_as_text(total) == sizes_as_text(mean) and site.recorded(total).dtype == site.recorded(mean).dtype
        one = stored.numel() == 1 and same
        site.require(one, "unsupported-spelling", f"{other.name} is not one number of the norm's dtype", other)
        other = stored.item()
    eps = float(other) if isinstance(other, (int, float)) else math.nan
    positive = math.isfinite(eps) and eps > 0
    site.require(positive, "unsupported-spelling", f"epsilon is {other}, not a positive number", total)
    return mean, eps


def is_mean(node: object) -> bool:
    """True for a mean and for the quotient of a sum by a number."""
    if not isinstance(node, fx.Node):
        return False
    if node.target is _QUOTIENT:
        total = node.args[0]
        return isinstance(total, fx.Node) and total.target is _SUM and isinstance(node.args[1], (int, float))
    return node.target is _aten.mean.dim


def mean_source(site: Site, mean: fx.Node) -> fx.Node:
    """What the mean is taken of, over its last axis."""
    require_only_reader(site, mean)
    reduced = mean
    if mean.target is _QUOTIENT:
        total = mean.args[0]
        assert isinstance(total, fx.Node)
        require_only_reader(site, total)
        reduced = total
    source = reduced.args[0]
    assert isinstance(source, fx.Node)
    rank = site.recorded(source).dim()
    axes: Any = reduced.args[1] if len(reduced.args) > 1 else None
    last = isinstance(axes, (list, tuple)) and [a % max(rank, 1) for a in axes] == [rank - 1]
    site.require(last, "axis-mismatch", f"{reduced.name} is over axes {axes}, not over the last one", reduced)
    kept = len(reduced.args) > 2 and reduced.args[2] is True
    site.require(kept, "unsupported-spelling", f"{reduced.name} drops the axis that it reduces", reduced)
    same = site.recorded(mean).dtype == site.recorded(reduced).dtype == site.recorded(source).dtype
    site.require(same, "unsupported-spelling", f"{mean.name} has another dtype than {source.name}", mean)
    if reduced is not mean:
        size = static_size(source, -1)
        if size is None:
            site.refuse("dynamic-shape", f"the size of the last axis of {source.name} is not known at capture", source)
        divisor: Any = mean.args[1]
        site.require(divisor == size, "not-a-norm", f"{mean.name} divides a sum of {size} values by {divisor}", mean)
    return source


def squared_value(site: Site, square: fx.Node) -> fx.Node:
    """The value that is squared."""
    base: Any = square.args[0] if square.args else None
    is_square = (
        square.target is _aten.square.default
        or (square.target is _aten.pow.Tensor_Scalar and square.args[1] == 2)
        or (square.target is _PRODUCT and base is square.args[1])
    )
    if not is_square or not isinstance(base, fx.Node):
        site.refuse("not-a-norm", f"{square.name} ({square.target}) is no square", square)
    require_only_reader(site, square)
    return base


def centred_source(node: object) -> fx.Node | None:
    """What a value is, less its own mean; None where it is no such difference. Over which axes is not asked."""
    if not isinstance(node, fx.Node) or node.target is not _aten.sub.Tensor:
        return None
    source, mean = node.args[:2]
    if isinstance(mean, fx.Node) and mean.target is _QUOTIENT:
        mean = mean.args[0]
    is_mean_of_it = isinstance(mean, fx.Node) and mean.target in MEANS and mean.args[0] is source
    return source if is_mean_of_it and isinstance(source, fx.Node) else None


def scaled_value(site: Site, x: fx.Node) -> fx.Node:
    """The product of ``x`` with the inverse root."""
    root = site.node
    reader = require_only_reader(site, root)
    if root.target is _aten.sqrt.default:
        if reader.target is _QUOTIENT and reader.args[1] is root:
            return _require_same(site, x, reader, reader.args[0])
        if reader.target is not _aten.reciprocal.default:
            _refuse_reader(site, root, reader)
        root, reader = reader, require_only_reader(site, reader)
        # Python's 1.0 / v is a reciprocal and a product with one.
        if reader.target is _PRODUCT and not isinstance(reader.args[1], fx.Node) and reader.args[1] == 1:
            root, reader = reader, require_only_reader(site, reader)
    if reader.target is not _PRODUCT:
        _refuse_reader(site, root, reader)
    return _require_same(site, x, reader, reader.args[1] if reader.args[0] is root else reader.args[0])


def _require_same(site: Site, x: fx.Node, scaled: fx.Node, other: object) -> fx.Node:
    """``scaled``, where its other operand is ``x``, or what ``x`` is a wider copy of: the product widens it too."""
    same = other is x or (isinstance(other, fx.Node) and other is uncast(x) and _widens(other, x))
    site.require(same, "not-a-norm", f"{scaled.name} scales {other}, but {x.name} is what is squared", scaled)
    return scaled


def uncast(node: fx.Node) -> fx.Node:
    source = node.args[0] if node.target is _aten._to_copy.default else None
    return source if isinstance(source, fx.Node) else node


def _widens(source: fx.Node, cast: fx.Node) -> bool:
    before, after = recorded_tensor(source), recorded_tensor(cast)
    return (
        before is not None
        and after is not None
        and before.dtype.is_floating_point
        and torch.promote_types(before.dtype, after.dtype) == after.dtype
        and before.device == after.device
    )


def gain_after(scaled: fx.Node) -> fx.Node | None:
    """A stored vector in the norm's dtype that is all that reads ``scaled``, as a factor."""
    reader = next(iter(scaled.users)) if len(scaled.users) == 1 else None
    if reader is None or reader.target is not _PRODUCT:
        return None
    gain, value = feature_vector(reader, scaled), recorded_tensor(scaled)
    vector = recorded_tensor(gain)
    is_same_type = vector is not None and value is not None and vector.dtype == value.dtype
    return gain if is_same_type else None


def require_only_reader(site: Site, node: fx.Node) -> fx.Node:
    is_output = any(user.op == "output" for user in node.users)
    site.require(not is_output, "graph-output", f"{node.name} is an output of the model", node)
    site.require(len(node.users) == 1, "multiple-readers", f"{node.name} is read {len(node.users)} times", node)
    return next(iter(node.users))


def _refuse_reader(site: Site, root: fx.Node, reader: fx.Node) -> NoReturn:
    site.refuse("not-a-norm", f"{reader.name} ({reader.target}) reads {root.name}, which scales no value", reader)
