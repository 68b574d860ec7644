"""Measured statistics of a batch norm: checked, and stored."""

from collections.abc import Mapping

import torch
from torch import fx

from flowopt.analysis.channel_statistics import ChannelStatistics
from flowopt.ir.metadata import module_path
from flowopt.rewrite import Edit, Site


def require_recorded(site: Site) -> None:
    """Refuse where what the operator reads has no recorded shape."""
    source = site.node.args[0]
    assert isinstance(source, fx.Node)
    site.recorded(source)


def require_statistics(
    site: Site, statistics: Mapping[str, ChannelStatistics], output: fx.Node, source: fx.Node, channels: int
) -> ChannelStatistics:
    """The statistics of the norm whose value is ``output``; refuses where there are none that it could have."""
    found = statistics.get(output.name)
    if found is None:
        site.refuse("not-measured", f"no data went through {output.name}")
    mean, variance = found
    sizes = {tuple(mean.shape), tuple(variance.shape)}
    message = f"{output.name} has {channels} channels, the measurement {sizes}"
    site.require(sizes == {(channels,)}, "not-measured", message)
    limit = torch.finfo(site.recorded(source).dtype).max
    for what, vector in (("mean", mean), ("variance", variance)):
        fits = bool((vector.abs() <= limit).all()) and (what == "mean" or bool((vector >= 0).all()))
        site.require(fits, "not-finite", f"a {what} of {output.name} is negative, not finite or above {limit:.3g}")
    return found


def stored_statistics(
    edit: Edit, statistics: ChannelStatistics, mean_like: fx.Node, variance_like: fx.Node
) -> tuple[fx.Node, fx.Node]:
    """New stored tensors of the dtypes of others, and named after them."""
    made = []
    for vector, like, name in zip(statistics, (mean_like, variance_like), ("running_mean", "running_var"), strict=True):
        wanted = str(like.target) if like.op == "get_attr" and str(like.target).endswith(name) else _name(edit, name)
        made.append(edit.parameter(wanted, vector.to(like.meta["val"].device), like=like))
    return made[0], made[1]


def _name(edit: Edit, name: str) -> str:
    return f"{module_path(edit.anchor) or edit.anchor.name}.{name}"
