"""Which vectors of a value are padding, as far as its shape tells."""

from collections.abc import Mapping
from typing import Final

from torch import Tensor

# Before the name of an input that is 1 (or True) where a token is padding.
INVERTED: Final = "not:"


def input_of(padding: str) -> str:
    """The input that a word such as ``attention_mask`` or ``not:key_padding_mask`` names."""
    return padding.removeprefix(INVERTED)


def real_tokens(inputs: Mapping[str, Tensor], padding: str) -> Tensor:
    """(batch, tokens), True where a token is real; ``padding`` as above."""
    marked = inputs[input_of(padding)] != 0
    return ~marked if padding.startswith(INVERTED) else marked


def padding_of(value: Tensor, masked: Tensor | None, channel_axis: int = -1) -> Tensor | None:
    """The padding of every vector of ``value``: its shape without the channels, True where a vector is padding.

    A value belongs to the tokens where its axes, channels apart, start with [batch, tokens], or are the two as one.

    Args:
        value: any shape.
        masked: (batch, tokens), True where a token is padding, or the padding of every vector already; None where no
            padding is known.
        channel_axis: of ``value``.

    Returns:
        None where there is no mask, or it does not fit.
    """
    if masked is None:
        return None
    axis = channel_axis % value.dim()
    shape = (*value.shape[:axis], *value.shape[axis + 1 :])
    if shape == tuple(masked.shape):
        return masked
    if masked.dim() != 2:
        return None
    if shape == (masked.numel(),):
        return masked.reshape(-1)
    if shape[:2] != tuple(masked.shape):
        return None
    return masked.reshape(*masked.shape, *(1 for _ in shape[2:])).expand(shape)
