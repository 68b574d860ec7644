"""Batch norm whose statistics are partly those of the batch at hand, at test time too."""

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
    token_count,
    token_moments,
    token_sum,
)
from flowopt.ops._reduced import all_reduced


class AlphaBatchNorm(nn.Module):
    """Batch norm with statistics between the stored ones and the batch's.

        mean = (1 - target_weight) running_mean + target_weight mean(batch), var alike, the batch's unbiased
        y[c] = weight[c] * (x[c] - mean[c]) / sqrt(var[c] + eps) + bias[c]

    in training and in eval mode. With ``target_weight=0`` that is batch norm in eval mode, one multiplication and one
    addition per channel; with more, a sample's result depends on the rest of its batch, until ``freeze_on`` or
    ``settle``. Training moves the stored statistics after using them, running <- (1 - momentum) running + momentum
    batch; with ``momentum=0``, the published form, they stay those of the training data. Gradients are exact, through
    the batch's share of the statistics.

    The weight is that of the batch, the target: papers disagree on which side alpha stands.

    In distributed training the batch's statistics are those of all processes' tokens together.

    Args:
        channels: C.
        target_weight: share of the batch's statistics, 0 to 1; the authors' code uses 0.1.
        eps: added to the variance.
        momentum: share by which training moves the stored statistics.
        channel_axis: axis of the channels in the input: 1 for images.
        device: of parameters and buffers.
        dtype: of parameters and buffers, floating point.

    Attributes:
        weight, bias: (C,).
        running_mean, running_var: buffers (C,).
        num_batches_tracked: buffer (), int64. The names are those of torch's batch norms.

    Shapes: x of any shape with C entries on ``channel_axis``; pad_mask: bool, x's shape without the channels, True on
    padding, which may hold anything, but only finite numbers where gradients are taken. The result has x's shape and
    dtype; statistics are float32 or wider.

    Raises:
        UserError: the channels are not where ``channel_axis`` says, the mask does not fit, or ``target_weight`` is no
            share.

    Source: You, Li, Zhao, "Test-time batch statistics calibration for covariate shift", arXiv:2110.04065;
    the authors' code.
    """

    weight: nn.Parameter
    bias: nn.Parameter
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        channels: int,
        *,
        target_weight: float = 0.1,
        eps: float = 1e-5,
        momentum: float = 0.0,
        channel_axis: int = -1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not (0 <= target_weight <= 1 and 0 <= momentum <= 1):
            raise UserError(f"target_weight={target_weight} and momentum={momentum} are shares, from 0 to 1.")
        self.channels = channels
        self.target_weight = target_weight
        self.eps = eps
        self.momentum = momentum
        self.channel_axis = channel_axis
        self.is_settled = False
        self.weight = nn.Parameter(torch.ones(channels, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(channels, device=device, dtype=dtype))
        self.register_buffer("running_mean", torch.zeros(channels, device=device, dtype=dtype))
        self.register_buffer("running_var", torch.ones(channels, device=device, dtype=dtype))
        self.register_buffer("num_batches_tracked", torch.zeros((), device=device, dtype=torch.int64))

    @classmethod
    def from_batch_norm(cls, norm: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d, target_weight: float) -> Self:
        """A trained batch norm that leans towards its batches; parameters and statistics are copied."""
        if norm.running_mean is None or norm.running_var is None:
            raise UserError(
                "This batch norm stores no statistics (track_running_stats=False), so there is nothing to mix with."
            )
        made = cls(
            norm.num_features,
            target_weight=target_weight,
            eps=norm.eps,
            channel_axis=1,
            device=norm.running_mean.device,
            dtype=norm.running_mean.dtype,
        )
        made.load_state_dict(norm.state_dict(), strict=bool(norm.affine))
        return made.train(norm.training)

    @classmethod
    def from_affine(
        cls,
        scale: Tensor,
        shift: Tensor,
        mean_square: Tensor,
        *,
        mean: Tensor | None = None,
        channel_axis: int = -1,
        target_weight: float = 0.0,
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> Self:
        """The norm that computes ``scale * x + shift`` with its stored statistics.

        With the default ``target_weight=0`` that is eval mode and the first training step.

        Args:
            scale, shift, mean_square: (channels,); the module has the dtype and the device of ``scale``.
            mean: (channels,), of the inputs, 0 where left out; the stored variance is ``mean_square - mean^2``. Give
                the true one where the module is trained: the stored mean then stays where it is. From 0 it drifts to
                the true one, and the map with it.

        The other arguments are those of the class.

        Raises:
            UserError: the vectors do not fit one another, ``mean_square`` is negative somewhere, or ``mean`` is not
                finite.
        """
        channels = require_affine(scale, shift, mean_square)
        mean = torch.zeros_like(mean_square) if mean is None else mean
        if mean.shape != (channels,) or not bool(mean.isfinite().all()):
            raise UserError(f"mean has shape {tuple(mean.shape)}, but should be ({channels},) and finite.")
        norm = cls(
            channels,
            target_weight=target_weight,
            eps=eps,
            momentum=momentum,
            channel_axis=channel_axis,
            device=scale.device,
            dtype=scale.dtype,
        )
        with torch.no_grad():
            norm.running_mean.copy_(mean)
            # Their difference may be rounded to below 0 where a channel is constant.
            norm.running_var.copy_((mean_square.double() - mean.double().square()).clamp(min=0))
            # Of the statistics as they are stored, so that their rounding cancels.
            norm.weight.copy_(scale.double() * (norm.running_var.double() + eps).sqrt())
            norm.bias.copy_(shift.double() + scale.double() * norm.running_mean.double())
        return norm

    def forward(self, x: Tensor, pad_mask: Tensor | None = None) -> Tensor:
        axis = require_channels(x, self.channels, self.channel_axis)
        value = x.to(computing_dtype(x, self.weight))
        mean, var = self._statistics(value, axis, counted_tokens(x, pad_mask, axis))
        z = (value - per_channel(mean, x, axis)) / per_channel((var + self.eps).sqrt(), x, axis)
        return (per_channel(self.weight, x, axis) * z + per_channel(self.bias, x, axis)).to(x.dtype)

    def settle(self) -> None:
        """From now on only the stored statistics are used, in training, too, and they no longer move.

        Not part of the state dict: to resume from a checkpoint, call it again.
        """
        self.is_settled = True

    @torch.no_grad()
    def freeze_on(self, batches: Iterable[Tensor | tuple[Tensor, Tensor]]) -> None:
        """Let the tokens of some inputs be the target once and for all: store the mixed statistics, and settle.

        Afterwards a sample's result no longer depends on its batch, and is what it would have been in one batch of all
        that was given. In a distributed run, over the tokens of all processes.

        Args:
            batches: inputs of this norm, or pairs of input and ``pad_mask``.

        Raises:
            UserError: fewer than two tokens count, one of them holds a NaN or an infinity, or the norm is settled: its
                statistics are mixed, or are to stay what they are.
        """
        if self.is_settled:
            raise UserError(
                "This AlphaBatchNorm is settled: to freeze it again would mix its statistics twice.",
                hint="Give all batches to one freeze_on(batches), before settle().",
            )
        mean = self.running_mean.double()
        totals = torch.zeros(2 * self.channels + 1, dtype=torch.float64, device=mean.device)
        for x, pad_mask in masked_batches(batches):
            axis = require_channels(x, self.channels, self.channel_axis)
            counted = counted_tokens(x, pad_mask, axis)
            # Sums of distances from the stored mean: squares of the values themselves would cancel.
            away = x.double() - per_channel(mean, x, axis)
            away = away if counted is None else away.where(counted, 0)
            count = token_count(away, axis, counted).reshape(1)
            totals += torch.cat([token_sum(away, axis), token_sum(away.square(), axis), count])
        totals = all_reduced(totals)
        first, second, count = totals.split([self.channels, self.channels, 1])
        if not bool(totals.isfinite().all()):
            raise UserError("The calibration batches hold a NaN or an infinity outside their padding.")
        if count.item() < 2:
            raise UserError("Fewer than two tokens of the calibration batches count, and one has no variance.")
        target_var = (second - first.square() / count) / (count - 1)
        self.running_mean.lerp_((mean + first / count).to(self.running_mean.dtype), self.target_weight)
        self.running_var.lerp_(target_var.to(self.running_var.dtype), self.target_weight)
        self.settle()

    def frozen_affine(self) -> tuple[Tensor, Tensor]:
        """(scale, shift), each (channels,), float64, detached; raises UserError while batches have a share."""
        if self.target_weight > 0 and not self.is_settled:
            raise UserError(
                f"An AlphaBatchNorm with target_weight={self.target_weight} is no affine map: it depends on the batch.",
                hint="freeze_on(batches) makes some batches the target once and for all; settle() forgets the target.",
            )
        scale = self.weight.detach().double() / (self.running_var.double() + self.eps).sqrt()
        return scale, self.bias.detach().double() - scale * self.running_mean.double()

    def extra_repr(self) -> str:
        return (
            f"{self.channels}, target_weight={self.target_weight}, eps={self.eps}, momentum={self.momentum}, "
            f"channel_axis={self.channel_axis}"
        )

    def _statistics(self, x: Tensor, axis: int, counted: Tensor | None) -> tuple[Tensor, Tensor]:
        moves = self.training and self.momentum > 0
        if self.is_settled or not (moves or self.target_weight > 0):
            return self.running_mean, self.running_var
        stored = self.running_mean.clone(), self.running_var.clone()
        mean, var = token_moments(x, axis, counted=counted, otherwise=stored)
        if moves:
            with torch.no_grad():
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
                self.running_var.lerp_(var.to(self.running_var.dtype), self.momentum)
                self.num_batches_tracked.add_(1)
        if self.target_weight == 0:
            return stored
        source_weight = 1 - self.target_weight
        mixed_mean = source_weight * stored[0] + self.target_weight * mean
        return mixed_mean, source_weight * stored[1] + self.target_weight * var
