"""Where a value has the batch and the tokens that a mask speaks of."""

from typing import NamedTuple

from torch import Tensor, fx

from flowopt.ir.metadata import sizes_as_text


class TokenAxes(NamedTuple):
    """Axes of a value; both are the same where its rows are all tokens of all samples, one after another."""

    batch: int
    tokens: int


def token_axes(value: fx.Node, mask: fx.Node, channel_axis: int) -> TokenAxes | None:
    """The axes of ``value`` that are those of a mask of shape (batch, tokens).

    Free sizes are compared by name, so that a batch of as many samples as tokens is not mistaken. Where sizes alone
    leave several possibilities, the first two axes are taken, or else the first of each size.

    Returns:
        None where the value has no axis of tokens, such as a pooled one.
    """
    sizes, wanted = sizes_as_text(value), sizes_as_text(mask)
    if len(wanted) != 2 or not sizes:
        return None
    axes = [axis for axis in range(len(sizes)) if axis != channel_axis % len(sizes)]
    batch = next((axis for axis in axes if sizes[axis] == wanted[0]), None)
    tokens = next((axis for axis in axes if sizes[axis] == wanted[1] and axis != batch), None)
    if batch is not None and tokens is not None:
        return TokenAxes(batch, tokens)
    is_flat = len(axes) == 1 and sizes[axes[0]] in _products(*wanted)
    return TokenAxes(axes[0], axes[0]) if is_flat else None


def kept_rows(real: Tensor, axes: TokenAxes, value: Tensor, channel_axis: int) -> Tensor:
    """Which vectors of channels are of real tokens, in the order of ``value.movedim(channel_axis, -1)``.

    Args:
        real: (batch, tokens), true where a token is real.
        axes: of ``value``, for the mask.
        value: the tensor.
        channel_axis: of ``value``.

    Returns:
        One boolean for each vector, flat.
    """
    if axes.batch == axes.tokens:
        return real.flatten()
    aligned = real if axes.batch < axes.tokens else real.t()
    shape = [size if axis in axes else 1 for axis, size in enumerate(value.shape)]
    whole = aligned.reshape(shape).movedim(channel_axis, -1).squeeze(-1)
    return whole.expand(value.movedim(channel_axis, -1).shape[:-1]).flatten()


def padded_vectors(node: fx.Node, value: Tensor, padding: Tensor, mask: fx.Node, channel_axis: int) -> Tensor | None:
    """Which vectors of a value are padding: its shape without the channels; None where it has no axis of tokens.

    Args:
        node: whose value it is.
        value: the tensor.
        padding: (batch, tokens), true where a token is padding.
        mask: the input that tells.
        channel_axis: of the value.
    """
    axes = token_axes(node, mask, channel_axis)
    if axes is None:
        return None
    return ~kept_rows(~padding, axes, value, channel_axis).reshape(value.movedim(channel_axis, -1).shape[:-1])


def _products(one: str, other: str) -> set[str]:
    if one.isdigit() and other.isdigit():
        return {str(int(one) * int(other))}
    if "1" in (one, other):
        return {other if one == "1" else one}
    # As sizes print: numbers stand before symbols, and symbols in the order of their names.
    return {f"{one}*{other}", f"{other}*{one}"}
