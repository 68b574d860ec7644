"""Statistics per channel, and maps per channel, of a tensor whose channels lie on any axis."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from flowopt.errors import UserError
from flowopt.ops._reduced import all_reduced


def require_channels(x: Tensor, channels: int, channel_axis: int) -> int:
    """The channels' axis of ``x`` as a non-negative number; raises UserError where it has not ``channels`` entries."""
    if not -x.dim() <= channel_axis < x.dim() or x.shape[channel_axis] != channels:
        raise UserError(
            f"The input has shape {tuple(x.shape)}, but channel_axis={channel_axis} should have {channels} channels.",
            hint="Set channel_axis to the axis of the channels: 1 for images (batch, channels, height, width), -1 for "
            "tokens (batch, tokens, channels).",
        )
    return channel_axis % x.dim()


def counted_tokens(x: Tensor, pad_mask: Tensor | None, axis: int) -> Tensor | None:
    """``pad_mask`` turned round, with the channels' axis put back: True where a token counts. None: all count."""
    if pad_mask is None:
        return None
    shape = (*x.shape[:axis], *x.shape[axis + 1 :])
    if pad_mask.dtype != torch.bool or pad_mask.shape != shape:
        raise UserError(
            f"pad_mask is {pad_mask.dtype} of shape {tuple(pad_mask.shape)}, but should be torch.bool of shape "
            f"{tuple(shape)}: the input's without its channels.",
            hint="True marks padding. A mask with 1 for real tokens is turned by `mask == 0`.",
        )
    return ~pad_mask.unsqueeze(axis)


def computing_dtype(x: Tensor, parameter: Tensor) -> torch.dtype:
    """What statistics are computed in: at least float32, because squares above 65504 overflow float16."""
    return torch.promote_types(torch.promote_types(x.dtype, parameter.dtype), torch.float32)


def per_channel(vector: Tensor, x: Tensor, axis: int) -> Tensor:
    """``vector`` (channels,) shaped so that it meets ``x`` along ``axis``."""
    return vector.reshape([-1 if position == axis else 1 for position in range(x.dim())])


def token_sum(values: Tensor, axis: int) -> Tensor:
    """(channels,): the sum over every other axis, of this process alone."""
    return values.sum([position for position in range(values.dim()) if position != axis])


def token_count(values: Tensor, axis: int, counted: Tensor | None) -> Tensor:
    """(), in the dtype of ``values``: tokens that count, of this process alone."""
    if counted is None:
        return torch.full((), values.numel() // values.shape[axis], dtype=values.dtype, device=values.device)
    return counted.sum(dtype=values.dtype)


def token_mean(values: Tensor, axis: int, *, counted: Tensor | None = None, otherwise: Tensor) -> Tensor:
    """(channels,): the mean over the tokens that count of all processes; ``otherwise`` where there are none."""
    # Replaced, not multiplied by zero: padding may hold infinities and NaN.
    kept = values if counted is None else values.where(counted, 0)
    packed = torch.cat([token_sum(kept, axis), token_count(values, axis, counted).reshape(1)])
    totals, count = all_reduced(packed).split([values.shape[axis], 1])
    return torch.where(count > 0, totals / count.clamp(min=1), otherwise)


def token_moments(
    values: Tensor, axis: int, *, counted: Tensor | None = None, otherwise: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance, (channels,), over the tokens that count of all processes; differentiable.

    ``otherwise`` where no token counts; the variance of one token is 0.
    """
    # Replaced before they are squared: in the backward, a square of NaN turns the 0 that reaches it into NaN. So these
    # moments have finite gradients whatever the padding holds. A norm that divides the padding, too, has not: the 0
    # that reaches its quotient meets the NaN in there, and padding must be finite where gradients are taken.
    kept = values if counted is None else values.where(counted, 0)
    mean = token_mean(kept, axis, counted=counted, otherwise=otherwise[0])
    count = all_reduced(token_count(values, axis, counted))
    away = (kept - per_channel(mean, values, axis)).square()
    biased = token_mean(away, axis, counted=counted, otherwise=otherwise[1])
    return mean, torch.where(count > 0, biased * count / (count - 1).clamp(min=1), biased)


def masked_batches(batches: Iterable[Tensor | tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Each batch with its mask, or with None."""
    for batch in batches:
        yield (batch, None) if isinstance(batch, Tensor) else batch


def divided(x: Tensor, weight: Tensor, bias: Tensor, mean_square: Tensor, eps: float, axis: int) -> Tensor:
    """``weight * x / sqrt(mean_square + eps) + bias``, all per channel."""
    z = x / per_channel((mean_square + eps).sqrt(), x, axis)
    return per_channel(weight, x, axis) * z + per_channel(bias, x, axis)


def divided_as_affine(weight: Tensor, bias: Tensor, mean_square: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """What ``divided`` does to each channel, as (scale, shift): (channels,), float64, detached."""
    scale = weight.detach().double() / (mean_square.detach().double() + eps).sqrt()
    return scale, bias.detach().double()


def require_affine(scale: Tensor, shift: Tensor, mean_square: Tensor) -> int:
    """Number of channels; raises UserError unless all are (channels,) and ``mean_square`` is nowhere negative."""
    if not (scale.dim() == 1 and scale.shape == shift.shape == mean_square.shape):
        raise UserError(
            f"scale, shift and mean_square have shapes {tuple(scale.shape)}, {tuple(shift.shape)} and "
            f"{tuple(mean_square.shape)}, but should each be (channels,)."
        )
    if not bool((mean_square >= 0).all()):
        raise UserError("mean_square holds a negative number or NaN, which no mean of squares is.")
    return scale.shape[0]
