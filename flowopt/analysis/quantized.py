"""Weights that are stored in fewer bits than they are used in."""

import torch
from torch import fx

from flowopt.ir.constants import needed_nodes
from flowopt.ir.metadata import recorded_tensor


def quantized_source(weight: fx.Node) -> fx.Node | None:
    """The first stored tensor of integers or 8-bit floats that a parameter-only value is computed from, or None."""
    return next((n for n in sorted(needed_nodes([weight], ())) if n.op == "get_attr" and _is_quantized(n)), None)


def _is_quantized(stored: fx.Node) -> bool:
    value = recorded_tensor(stored)
    if value is None or value.dtype is torch.bool:  # a mask
        return False
    return not value.is_floating_point() or value.dtype.itemsize == 1
