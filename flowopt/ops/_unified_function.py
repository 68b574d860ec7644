"""Unified Normalization of one training iteration, with its published backward."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from flowopt.ops._channels import divided, per_channel, token_mean, token_sum
from flowopt.ops._reduced import world_size


class Step(NamedTuple):
    """One iteration: (channels,) var and gradient ratio; (1,) its number, and whether it stands for itself alone."""

    var: Tensor
    ratio: Tensor
    t: Tensor
    uses_batch: Tensor


class GradientState(NamedTuple):
    """What backward reads and moves."""

    ema_gz: Tensor
    window: Tensor
    warmup_iters: int
    momentum: float
    eps: float
    axis: int


class UnifiedFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        var: Tensor,
        ratio: Tensor,
        t: Tensor,
        uses_batch: Tensor,
        gradients: GradientState,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, var, ratio, t, uses_batch)
        # Its tensors are not saved for backward, which changes them.
        ctx.gradients = gradients
        return divided(x, weight, bias, var, gradients.eps, gradients.axis)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, var, ratio, t, uses_batch = ctx.saved_tensors
        ema_gz, window, warmup_iters, momentum, eps, axis = ctx.gradients
        processes = world_size()
        root = (var + eps).sqrt()
        z = x / per_channel(root, x, axis)
        g = grad * per_channel(weight * ratio / processes, x, axis)
        batch = token_mean(g * z, axis, otherwise=torch.zeros_like(ema_gz))
        window.index_copy_(0, t % len(window), torch.where(uses_batch, ema_gz, batch).to(window.dtype)[None])
        is_early = (t <= len(window)) | (t < warmup_iters)
        average = torch.where(is_early | uses_batch, batch, window.mean(0))
        ema_gz.copy_(momentum * ema_gz + (1 - momentum) * average)
        corrected = g - per_channel(torch.where(uses_batch, average, ema_gz), x, axis) * z
        dx = corrected * per_channel(processes / root, x, axis)
        dweight = ratio * token_sum(grad * z, axis)
        return dx, dweight, token_sum(grad, axis), None, None, None, None, None
