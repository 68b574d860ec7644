"""Patterns of integers inside a range: ids, indices, and others."""

from typing import Literal

import torch
from torch import Generator, Tensor

from flowopt.analysis.input_roles import Role

IntegerPattern = Literal["random", "lowest", "highest", "edges", "padded"]


def integers(pattern: IntegerPattern, role: Role, shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Integers that a role allows; int64.

    ``edges`` alternates between the lowest and the highest. ``padded`` ends every row with the id of padding, the first
    row being nothing else; it is the lowest id where the model declares none.
    """
    count = int(torch.Size(shape).numel())
    lowest, highest = role.low, max(role.high - 1, role.low)
    if pattern == "lowest":
        return torch.full(shape, lowest)
    if pattern == "highest":
        return torch.full(shape, highest)
    if pattern == "edges":
        return torch.tensor([lowest, highest])[torch.arange(count) % 2].reshape(shape)
    made = torch.randint(lowest, highest + 1, shape, generator=generator)
    if pattern == "padded" and shape and count > 0:
        rows = made.reshape(-1, shape[-1])
        lengths = torch.arange(rows.shape[0]).unsqueeze(-1) % shape[-1]
        padding = lowest if role.padding is None else role.padding
        made = torch.where(torch.arange(shape[-1]) < lengths, rows, padding).reshape(shape)
    return made
