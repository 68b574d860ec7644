"""A stand-in for softmax attention as a program, for the values of one site."""

from collections.abc import Mapping

import torch
from torch import Tensor, fx

from flowopt.ir.metadata import recorded_tensor
from flowopt.ops.attention.in_place_of_softmax import InPlaceOfSoftmax
from flowopt.program.capture_freely import capture_freely
from flowopt.program.program import Program


def traced(leaf: InPlaceOfSoftmax, inputs: Mapping[str, fx.Node]) -> Program:
    """The program of a leaf whose inputs are as free as the nodes that it will be given.

    Args:
        leaf: left as it is.
        inputs: node by name of the leaf's argument.
    """
    longest = 3 * leaf.linear.chunk + 1
    sizes: dict[str, int] = {}
    example: dict[str, Tensor] = {}
    free: dict[str, list[int]] = {}
    for argument, node in inputs.items():
        value = recorded_tensor(node)
        assert value is not None  # checked of every site
        free[argument] = [axis for axis, size in enumerate(value.shape) if not isinstance(size, int)]
        for axis in free[argument]:
            # Sizes that are named differently differ: export takes equal ones for one.
            sizes.setdefault(str(value.shape[axis]), 3 + len(sizes) if axis == 0 else longest + 2 * len(sizes))
        shape = [size if isinstance(size, int) else sizes[str(size)] for size in value.shape]
        # The leaf is traced with them, and computes nothing.
        example[argument] = torch.zeros(shape, dtype=value.dtype)
    return capture_freely(leaf.eval(), example, free)
