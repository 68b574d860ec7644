"""PowerNorm: channels divided by a running quadratic mean, with the published approximate backward."""

from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from flowopt.errors import UserError
from flowopt.ops._channels import (
    computing_dtype,
    counted_tokens,
    divided,
    divided_as_affine,
    per_channel,
    require_affine,
    require_channels,
    token_mean,
    token_sum,
)
from flowopt.ops._reduced import world_size


class PowerNorm(nn.Module):
    """Divide each channel by the root of its running mean square.

        y[c] = weight[c] * x[c] / sqrt(phi[c] + eps) + bias[c]

    At training iteration t, from 1, with v the mean of x^2 over the tokens that count:

    - x is divided by sqrt(v + eps) while t <= warmup_iters, and later by sqrt(phi + eps), phi before its update;
    - while t < warmup_iters, phi <- phi (t - 1) / t + v / t; then always phi <- alpha_fwd phi + (1 - alpha_fwd) v.
      That both happen during the warm-up is what the published code does, and checkpoints depend on it;
    - backward, with g = weight * dL/dy and z what x became: g' = g - (1 - alpha_bkw) nu z, dL/dx = g' / sqrt(v + eps)
      (the batch's v, after the warm-up, too), nu <- nu + mean(g' z) over all tokens, padding among them.

    With ``groups``, first x <- x / sqrt(mean of x^2 over the token's group of channels + 1e-5), in eval mode, too: the
    official form, no longer affine, so that only weight and bias fold. ``groups=None`` leaves that out: the foldable
    form, whose eval mode is one multiplication and one addition per channel.

    A channel that is always 0 stays finite (phi = 0), but is amplified by 1 / sqrt(eps) if it wakes.

    In distributed training, v and mean(g' z) are those of all processes' tokens together. nu is kept in units of the
    whole batch's loss, provided that each process's loss is a mean over an equal share of the batch and gradients are
    averaged over processes, as DistributedDataParallel does: then any number of processes gives the same numbers.

    Args:
        channels: C.
        eps: added to phi.
        alpha_fwd: decay of phi.
        alpha_bkw: decay of nu.
        warmup_iters: iterations that normalise by the batch.
        groups: groups of group scaling, a divisor of C; None: no group scaling.
        channel_axis: axis of the channels in the input.
        device: of parameters and buffers.
        dtype: of parameters and buffers, floating point.

    Attributes:
        weight, bias: (C,).
        running_phi, ema_gz: buffers (1, C, 1, 1), phi and nu.
        iters: buffer (1,), int64, t.

    Shapes: x of any shape with C entries on ``channel_axis``; pad_mask: bool, x's shape without the channels, True on
    padding. The result has x's shape and dtype. Statistics are computed in float32 or wider and stored in the module's
    dtype: a float16 module holds no mean square above 65504.

    Raises:
        UserError: the channels are not where ``channel_axis`` says, the mask fits not, or C is not divisible.

    Source: Shen et al., "PowerNorm: Rethinking Batch Normalization in Transformers", arXiv:2003.07845, section 4; the
    authors' code where it differs from the paper. State dicts are exchangeable with the authors' MaskPowerNorm.
    """

    weight: nn.Parameter
    bias: nn.Parameter
    running_phi: Tensor
    ema_gz: Tensor
    iters: Tensor

    def __init__(
        self,
        channels: int,
        *,
        eps: float = 1e-5,
        alpha_fwd: float = 0.9,
        alpha_bkw: float = 0.9,
        warmup_iters: int = 10000,
        groups: int | None = 1,
        channel_axis: int = -1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if groups is not None and (groups < 1 or channels % groups):
            raise UserError(
                f"groups={groups} must divide channels={channels}.",
                hint="groups=1 scales each token as a whole; groups=None leaves group scaling out.",
            )
        self.channels = channels
        self.eps = eps
        self.alpha_fwd = alpha_fwd
        self.alpha_bkw = alpha_bkw
        self.warmup_iters = warmup_iters
        self.groups = groups
        self.channel_axis = channel_axis
        self.is_settled = False
        self.weight = nn.Parameter(torch.ones(channels, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(channels, device=device, dtype=dtype))
        self.register_buffer("running_phi", torch.ones(1, channels, 1, 1, device=device, dtype=dtype))
        self.register_buffer("ema_gz", torch.zeros(1, channels, 1, 1, device=device, dtype=dtype))
        self.register_buffer("iters", torch.zeros(1, device=device, dtype=torch.int64))

    @classmethod
    def from_affine(
        cls,
        scale: Tensor,
        shift: Tensor,
        mean_square: Tensor,
        *,
        channel_axis: int = -1,
        eps: float = 1e-5,
        alpha_fwd: float = 0.9,
        alpha_bkw: float = 0.9,
        warmup_iters: int = 10000,
    ) -> Self:
        """The foldable form that computes ``scale * x + shift``, in eval mode and at the first training step.

        Args:
            scale, shift, mean_square: (channels,); ``mean_square`` becomes phi. The module has the dtype and the
                device of ``scale``.

        The warm-up counts as done: training divides by phi at once. The other arguments are those of the class.
        """
        norm = cls(
            require_affine(scale, shift, mean_square),
            eps=eps,
            alpha_fwd=alpha_fwd,
            alpha_bkw=alpha_bkw,
            warmup_iters=warmup_iters,
            groups=None,
            channel_axis=channel_axis,
            device=scale.device,
            dtype=scale.dtype,
        )
        with torch.no_grad():
            norm.weight.copy_(scale.double() * (mean_square.double() + eps).sqrt())
            norm.bias.copy_(shift)
            norm.running_phi.copy_(mean_square.reshape(1, -1, 1, 1))
            norm.iters.fill_(warmup_iters + 1)
        return norm

    def forward(self, x: Tensor, pad_mask: Tensor | None = None) -> Tensor:
        axis = require_channels(x, self.channels, self.channel_axis)
        value = x.to(computing_dtype(x, self.weight))
        if self.groups is not None:
            value = _group_scaled(value, self.groups, axis)
        if not self.training or self.is_settled:
            phi = self.running_phi.flatten()
            return divided(value, self.weight, self.bias, phi, self.eps, axis).to(x.dtype)
        batch, divisor = self._observed(value.detach(), axis, counted_tokens(x, pad_mask, axis))
        ema_gz = self.ema_gz.view(-1)
        constants = (ema_gz, self.eps, self.alpha_bkw, axis)
        y = _PowerFunction.apply(value, self.weight, self.bias, divisor, batch, *constants)  # type: ignore[no-untyped-call]  # torch leaves apply unannotated
        return cast(Tensor, y).to(x.dtype)

    def settle(self) -> None:
        """From now on training, too, divides by phi, which no longer moves: gradients are those of an affine map.

        Not part of the state dict: to resume from a checkpoint, call it again.
        """
        self.is_settled = True

    def frozen_affine(self) -> tuple[Tensor, Tensor]:
        """(scale, shift) of eval mode, each (channels,), float64, detached; raises UserError with group scaling."""
        if self.groups is not None:
            raise UserError(
                f"A PowerNorm with groups={self.groups} is no affine map: it divides every token by its own root mean "
                "square.",
                hint="Train the foldable form, PowerNorm(..., groups=None).",
            )
        return divided_as_affine(self.weight, self.bias, self.running_phi.flatten(), self.eps)

    def extra_repr(self) -> str:
        return (
            f"{self.channels}, eps={self.eps}, alpha_fwd={self.alpha_fwd}, alpha_bkw={self.alpha_bkw}, "
            f"warmup_iters={self.warmup_iters}, groups={self.groups}, channel_axis={self.channel_axis}"
        )

    @torch.no_grad()
    def _observed(self, x: Tensor, axis: int, counted: Tensor | None) -> tuple[Tensor, Tensor]:
        """The batch's mean square, and what x is divided by the root of; phi and the counter move on."""
        # The counter stays a tensor: reading it as a number would make the host wait for the device at every step.
        self.iters.add_(1)
        phi, t = self.running_phi.view(-1), self.iters
        batch = token_mean(x.square(), axis, counted=counted, otherwise=phi)
        divisor = torch.where(t <= self.warmup_iters, batch, phi)
        averaged = torch.where(t < self.warmup_iters, phi * (t - 1) / t + batch / t, phi)
        phi.copy_(self.alpha_fwd * averaged + (1 - self.alpha_fwd) * batch)
        return batch, divisor


class _PowerFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        divisor: Tensor,
        batch: Tensor,
        ema_gz: Tensor,
        eps: float,
        alpha_bkw: float,
        axis: int,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, divisor, batch)
        # Not saved for backward, which changes it.
        ctx.ema_gz = ema_gz
        ctx.eps, ctx.alpha_bkw, ctx.axis = eps, alpha_bkw, axis
        return divided(x, weight, bias, divisor, eps, axis)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, divisor, batch = ctx.saved_tensors
        axis, ema_gz, processes = ctx.axis, ctx.ema_gz, world_size()
        z = x / per_channel((divisor + ctx.eps).sqrt(), x, axis)
        g = grad * per_channel(weight / processes, x, axis)
        corrected = g - per_channel((1 - ctx.alpha_bkw) * ema_gz, x, axis) * z
        ema_gz.add_(token_mean(corrected * z, axis, otherwise=torch.zeros_like(ema_gz)))
        dx = corrected * per_channel(processes / (batch + ctx.eps).sqrt(), x, axis)
        return dx, token_sum(grad * z, axis), token_sum(grad, axis), None, None, None, None, None, None


def _group_scaled(x: Tensor, groups: int, axis: int) -> Tensor:
    """Each token's groups of channels divided by their root mean square; 1e-5 is the published constant."""
    grouped = x.unflatten(axis, (groups, x.shape[axis] // groups))
    scaled: Tensor = grouped / (grouped.square().mean(axis + 1, keepdim=True) + 1e-5).sqrt()
    return scaled.flatten(axis, axis + 1)
