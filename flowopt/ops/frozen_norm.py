"""Layer norm or RMS norm with one fixed standard deviation for all tokens."""

import math
from collections.abc import Iterable
from typing import Self

import torch
from torch import Tensor, nn

from flowopt.errors import UserError
from flowopt.ops._channels import (
    computing_dtype,
    counted_tokens,
    masked_batches,
    per_channel,
    require_affine,
    require_channels,
)
from flowopt.ops._reduced import all_reduced


class FrozenNorm(nn.Module):
    """The linear map nearest to a layer norm or an RMS norm.

        y = weight * (x - mean(x)) / sigma + bias, or weight * x / sigma + bias

    with mean(x) over a token's channels and sigma the same for every token. Training mode is eval mode: sigma does not
    move, and gradients are exact.

    Args:
        channels: C.
        subtracts_mean: True in place of a layer norm, False in place of an RMS norm.
        sigma: the fixed standard deviation, or root mean square; ``calibrate`` measures it.
        channel_axis: axis of the channels in the input.
        device: of parameters and buffers.
        dtype: of parameters and buffers, floating point.

    Attributes:
        weight, bias: (C,).
        sigma: buffer ().

    Shapes: x of any shape with C entries on ``channel_axis``; pad_mask: bool, x's shape without the channels, taken
    for the sake of the other norms: nothing here depends on it. The result has x's shape and dtype.

    Raises:
        UserError: the channels are not where ``channel_axis`` says, or sigma is not positive and finite as it is
            stored.

    Source: the scalar swap of Baroni et al., "Transformers Don't Need LayerNorm at Inference Time", arXiv:2507.02559.
    """

    weight: nn.Parameter
    bias: nn.Parameter
    sigma: Tensor

    def __init__(
        self,
        channels: int,
        *,
        subtracts_mean: bool = True,
        sigma: float = 1.0,
        channel_axis: int = -1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not 0 < torch.tensor(sigma, dtype=dtype, device="cpu").item() < math.inf:
            raise UserError(f"sigma={sigma} must be positive and finite in {dtype or 'the default dtype'}.")
        self.channels = channels
        self.subtracts_mean = subtracts_mean
        self.channel_axis = channel_axis
        self.weight = nn.Parameter(torch.ones(channels, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(channels, device=device, dtype=dtype))
        self.register_buffer("sigma", torch.full((), sigma, device=device, dtype=dtype))

    @classmethod
    def from_affine(cls, scale: Tensor, shift: Tensor, mean_square: Tensor, *, channel_axis: int = -1) -> Self:
        """The norm without a mean that computes ``scale * x + shift``.

        Args:
            scale, shift, mean_square: (channels,); sigma is the root of the mean of ``mean_square``, 1 where that is
                0, and kept where its products with gains are in range, for float16 between 1/128 and 256. The module
                has the dtype and the device of ``scale``.
        """
        channels = require_affine(scale, shift, mean_square)
        limits = torch.finfo(scale.dtype)
        # Any sigma makes the same map, but one that is 0 or infinite once it is rounded.
        sigma = mean_square.double().mean().sqrt().item() or 1.0
        sigma = min(max(sigma, limits.tiny**0.5), limits.max**0.5)
        norm = cls(
            channels,
            subtracts_mean=False,
            sigma=sigma,
            channel_axis=channel_axis,
            device=scale.device,
            dtype=scale.dtype,
        )
        with torch.no_grad():
            norm.weight.copy_(scale.double() * norm.sigma.double())
            norm.bias.copy_(shift)
        return norm

    def forward(self, x: Tensor, pad_mask: Tensor | None = None) -> Tensor:
        axis = require_channels(x, self.channels, self.channel_axis)
        value = x.to(computing_dtype(x, self.weight))
        if self.subtracts_mean:
            value = value - value.mean(axis, keepdim=True)
        y = per_channel(self.weight / self.sigma, x, axis) * value + per_channel(self.bias, x, axis)
        return y.to(x.dtype)

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Tensor | tuple[Tensor, Tensor]], *, eps: float = 1e-5) -> None:
        """Set sigma to the best for the tokens of some inputs: the least mean square error of the normalised token.

        sigma = E[s^2] / E[s^2 / sqrt(s^2 + eps)], which is E[s^2] / E[s] for eps = 0, with s a token's standard
        deviation, or root mean square. In a distributed run, over the tokens of all processes.

        Args:
            batches: inputs of this norm, or pairs of input and ``pad_mask``.
            eps: of the norm that is replaced.

        Raises:
            UserError: no token counts that differs from a constant, or one holds a NaN, an infinity or a number whose
                square is one.
        """
        totals = torch.zeros(2, dtype=torch.float64, device=self.sigma.device)
        for x, pad_mask in masked_batches(batches):
            axis = require_channels(x, self.channels, self.channel_axis)
            value = x.double()
            if self.subtracts_mean:
                value = value - value.mean(axis, keepdim=True)
            square = value.square().mean(axis, keepdim=True)
            counted = counted_tokens(x, pad_mask, axis)
            if counted is not None:
                square = square.where(counted, 0)
            # Not divided where it is 0: eps may be 0, too.
            share = torch.where(square > 0, square / (square + eps).sqrt(), 0)
            totals += torch.stack([square.sum(), share.sum()])
        square_sum, share_sum = all_reduced(totals).tolist()
        if not math.isfinite(square_sum):
            raise UserError(
                "The calibration batches hold a token without a finite standard deviation.",
                why="It has a NaN, an infinity, or a number whose square is infinite, and is no padding.",
            )
        if not share_sum > 0:
            raise UserError(
                "The calibration batches hold no token to measure a standard deviation of.",
                why="There are none, all are padding, or all are constant.",
            )
        # A deviation that the dtype has no number for would be 0 or infinite.
        limits = torch.finfo(self.sigma.dtype)
        self.sigma.fill_(min(max(square_sum / share_sum, limits.tiny), limits.max))

    def settle(self) -> None:
        """Nothing: sigma never moves."""

    def frozen_affine(self) -> tuple[Tensor, Tensor]:
        """(scale, shift), each (channels,), float64, detached; raises UserError where the mean is subtracted."""
        if self.subtracts_mean:
            raise UserError(
                "A FrozenNorm that subtracts the mean is no affine map of each channel: the mean is over all of them.",
                hint="frozen_linear() has it as a matrix. Or let fold-norm-mean turn the layer norm into an RMS norm "
                "first.",
            )
        return self.weight.detach().double() / self.sigma.double(), self.bias.detach().double()

    def frozen_linear(self) -> tuple[Tensor, Tensor]:
        """The whole norm as ``matrix @ x + shift``: (channels, channels) and (channels,), float64, detached."""
        matrix = torch.eye(self.channels, dtype=torch.float64, device=self.sigma.device)
        if self.subtracts_mean:
            matrix = matrix - 1 / self.channels
        scale = self.weight.detach().double() / self.sigma.double()
        return scale[:, None] * matrix, self.bias.detach().double()

    def extra_repr(self) -> str:
        return f"{self.channels}, subtracts_mean={self.subtracts_mean}, channel_axis={self.channel_axis}"
