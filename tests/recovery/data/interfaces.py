"""What models take, without models."""

import torch

from flowopt.program.interface import Interface, TensorSpec


def text(batch: int | str = "batch", dims: tuple[int, int | None] = (1, None)) -> Interface:
    """Ids and a mask of equal, free length."""
    inputs = (
        TensorSpec("ids", torch.int64, (batch, "tokens")),
        TensorSpec("mask", torch.bool, (batch, "tokens")),
    )
    return Interface(inputs, (), {"batch": dims, "tokens": (1, 512)}, single=True)


def vectors(batch: int | str = "batch", dims: tuple[int, int | None] = (1, None)) -> Interface:
    """Three floats for each sample."""
    return Interface((TensorSpec("x", torch.float32, (batch, 3)),), (), {"batch": dims}, single=True)


def graphs() -> Interface:
    """Nodes and edges, whose numbers have nothing to do with each other."""
    inputs = (TensorSpec("nodes", torch.float32, ("n", 4)), TensorSpec("edges", torch.int64, (2, "m")))
    return Interface(inputs, (), {"n": (1, None), "m": (1, None)}, single=True)
