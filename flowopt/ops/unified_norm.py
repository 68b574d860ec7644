"""Unified Normalization: channels divided by a quadratic mean that is smoothed over iterations, forward and back."""

from typing import Self, cast

import torch
from torch import Tensor, nn

from flowopt.errors import UserError
from flowopt.ops._channels import (
    computing_dtype,
    counted_tokens,
    divided,
    divided_as_affine,
    require_affine,
    require_channels,
    token_mean,
)
from flowopt.ops._unified_function import GradientState, Step, UnifiedFunction

# Iterations before which gradients are not scaled by the ratio of standard deviations, as published.
_UNSCALED_ITERS = 1000
# A slot of the window below this share of the window's mean says nothing of a channel's scale.
_EMPTY_SHARE = 1e-12
# What a sum, a logarithm and an exponential of a window may be off by, in units of its last place.
_ROUNDINGS = 32


class UnifiedNorm(nn.Module):
    """Divide each channel by the root of its mean square, smoothed by a geometric mean over the last iterations.

        eval: y[c] = weight[c] * x[c] / sqrt(running_var[c] + eps) + bias[c]

    At training iteration t, from 1, with q the mean of x^2 over the tokens that count and M the forward window:

    - q enters the window; x is divided by sqrt(var + eps), where var = q while t <= M or t < warmup_iters, and later
      the geometric mean of the window; running_var <- momentum running_var + (1 - momentum) var;
    - with ``outlier_filtration``, once t > M and t >= warmup_iters: the step is skipped when in any channel the
      window's arithmetic mean exceeds its geometric mean by more than M times the variance of all roots of the window
      before. A skipped step divides by its own q, and the window gets running_var instead;
    - backward, with z what x became, g = weight * r * dL/dy and r = sqrt(var + eps) / sqrt(running_var + eps) within
      [1/5, 5] (1 in a skipped step and while t <= max(1000, warmup_iters)): mean(g z) over all tokens, padding among
      them, is averaged over the backward window, then ema_gz <- momentum ema_gz + (1 - momentum) average, and dL/dx =
      (g - ema_gz z) / sqrt(var + eps); a skipped step uses its own mean(g z).

    A window of 1 is the plain batch quadratic mean with its exact gradient.

    Four deviations from the authors' code, whose faults they mend:

    - A skipped outlier does not enter running_var. There it does: one batch of 50 among batches of 1 makes inference
      wrong by a factor of 16, and is forgotten by a tenth per iteration.
    - A batch in which a channel is 0 throughout says nothing of its scale: its slot is left out of both means. There
      it makes the geometric mean 0, and outputs hundreds of times too large, for M - 1 iterations.
    - The M-th outlier in a row is accepted: what lasts is no outlier. Without this the first deviation would keep
      running_var for ever after a lasting change.
    - Nothing is skipped while t <= M. There it is, after a warm-up shorter than the window, by comparison with the
      zeros that the window begins with.

    In distributed training, q and mean(g z) are those of all processes' tokens together. ema_gz and buffer_gz are kept
    in units of the whole batch's loss, provided that each process's loss is a mean over an equal share of the batch
    and gradients are averaged over processes, as DistributedDataParallel does.

    Args:
        channels: C.
        window_size: M forward and backward, or a pair of both.
        warmup_iters: iterations that normalise by the batch.
        outlier_filtration: skip outliers; the authors advise it for images and not for text.
        eps: added to the mean square.
        momentum: decay of running_var and ema_gz.
        channel_axis: axis of the channels in the input.
        device: of parameters and buffers.
        dtype: of parameters and buffers, floating point.

    Attributes:
        weight, bias: (C,).
        running_var, ema_gz: buffers (C,).
        iters, skip_counter: buffers (1,), int64: t, and steps skipped.
        buffer_x2, buffer_gz: buffers (M, C), the windows. Inference needs neither.
        skips_in_row: buffer (1,), int64, not in the state dict: a resumed run begins with 0.

    Shapes: x of any shape with C entries on ``channel_axis``; pad_mask: bool, x's shape without the channels, True on
    padding. The result has x's shape and dtype. Statistics are computed in float32 or wider and stored in the module's
    dtype: a float16 module holds no mean square above 65504.

    Raises:
        UserError: the channels are not where ``channel_axis`` says, or the mask does not fit.

    Source: Yang et al., "Unified Normalization for Accelerating and Stabilizing Transformers", arXiv:2208.01313,
    section 3; the authors' code where it differs from the paper. State dicts are exchangeable with the authors' UN1d.
    """

    weight: nn.Parameter
    bias: nn.Parameter
    running_var: Tensor
    ema_gz: Tensor
    iters: Tensor
    skip_counter: Tensor
    skips_in_row: Tensor
    buffer_x2: Tensor
    buffer_gz: Tensor

    def __init__(
        self,
        channels: int,
        *,
        window_size: int | tuple[int, int] = 4,
        warmup_iters: int = 4000,
        outlier_filtration: bool = False,
        eps: float = 1e-5,
        momentum: float = 0.9,
        channel_axis: int = -1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        forward_window, backward_window = (window_size, window_size) if isinstance(window_size, int) else window_size
        if forward_window < 1 or backward_window < 1:
            raise UserError(f"window_size={window_size} must be at least 1: an iteration is part of its own window.")
        self.channels = channels
        self.forward_window = forward_window
        self.backward_window = backward_window
        self.warmup_iters = warmup_iters
        self.outlier_filtration = outlier_filtration
        self.eps = eps
        self.momentum = momentum
        self.channel_axis = channel_axis
        self.is_settled = False
        self.weight = nn.Parameter(torch.ones(channels, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(channels, device=device, dtype=dtype))
        self.register_buffer("running_var", torch.ones(channels, device=device, dtype=dtype))
        self.register_buffer("ema_gz", torch.zeros(channels, device=device, dtype=dtype))
        self.register_buffer("iters", torch.zeros(1, device=device, dtype=torch.int64))
        self.register_buffer("buffer_x2", torch.zeros(forward_window, channels, device=device, dtype=dtype))
        self.register_buffer("buffer_gz", torch.zeros(backward_window, channels, device=device, dtype=dtype))
        self.register_buffer("skip_counter", torch.zeros(1, device=device, dtype=torch.int64))
        self.register_buffer("skips_in_row", torch.zeros(1, device=device, dtype=torch.int64), persistent=False)

    @classmethod
    def from_affine(
        cls,
        scale: Tensor,
        shift: Tensor,
        mean_square: Tensor,
        *,
        channel_axis: int = -1,
        window_size: int | tuple[int, int] = 4,
        warmup_iters: int = 4000,
        outlier_filtration: bool = False,
        eps: float = 1e-5,
        momentum: float = 0.9,
    ) -> Self:
        """The norm that computes ``scale * x + shift`` in eval mode.

        The warm-up counts as done and the window is full of ``mean_square``, so that the first training step computes
        the same on a batch whose mean square is ``mean_square``; where a batch's is q, it is off by the factor
        (mean_square / q)^(1 / 2M), because q has its place in the window at once.

        Args:
            scale, shift, mean_square: (channels,); ``mean_square`` becomes running_var. The module has the dtype and
                the device of ``scale``.

        The other arguments are those of the class.
        """
        norm = cls(
            require_affine(scale, shift, mean_square),
            window_size=window_size,
            warmup_iters=warmup_iters,
            outlier_filtration=outlier_filtration,
            eps=eps,
            momentum=momentum,
            channel_axis=channel_axis,
            device=scale.device,
            dtype=scale.dtype,
        )
        with torch.no_grad():
            norm.weight.copy_(scale.double() * (mean_square.double() + eps).sqrt())
            norm.bias.copy_(shift)
            norm.running_var.copy_(mean_square)
            norm.buffer_x2.copy_(mean_square.expand_as(norm.buffer_x2))
            norm.iters.fill_(max(warmup_iters, norm.forward_window, norm.backward_window) + 1)
        return norm

    def forward(self, x: Tensor, pad_mask: Tensor | None = None) -> Tensor:
        axis = require_channels(x, self.channels, self.channel_axis)
        value = x.to(computing_dtype(x, self.weight))
        if not self.training or self.is_settled:
            return divided(value, self.weight, self.bias, self.running_var, self.eps, axis).to(x.dtype)
        step = self._observed(value.detach(), axis, counted_tokens(x, pad_mask, axis))
        gradients = GradientState(self.ema_gz, self.buffer_gz, self.warmup_iters, self.momentum, self.eps, axis)
        y = UnifiedFunction.apply(value, self.weight, self.bias, *step, gradients)  # type: ignore[no-untyped-call]  # torch leaves apply unannotated
        return cast(Tensor, y).to(x.dtype)

    def settle(self) -> None:
        """From now on training, too, divides by running_var, which no longer moves: gradients of an affine map.

        Not part of the state dict: to resume from a checkpoint, call it again.
        """
        self.is_settled = True

    def restart_warmup(self) -> None:
        """Begin with iteration 1 again, as the authors advise for fine-tuning a trained model."""
        self.iters.zero_()

    def frozen_affine(self) -> tuple[Tensor, Tensor]:
        """(scale, shift) of eval mode, each (channels,), float64, detached."""
        return divided_as_affine(self.weight, self.bias, self.running_var, self.eps)

    def extra_repr(self) -> str:
        return (
            f"{self.channels}, window_size=({self.forward_window}, {self.backward_window}), "
            f"warmup_iters={self.warmup_iters}, outlier_filtration={self.outlier_filtration}, eps={self.eps}, "
            f"momentum={self.momentum}, channel_axis={self.channel_axis}"
        )

    @torch.no_grad()
    def _observed(self, x: Tensor, axis: int, counted: Tensor | None) -> Step:
        """What this iteration divides by; the window, running_var and the counters move on."""
        # Counters and decisions stay tensors: to read one would make the host wait for the device at every step.
        self.iters.add_(1)
        t, running, window = self.iters.clone(), self.running_var, self.buffer_x2
        slot = t % self.forward_window
        batch = token_mean(x.square(), axis, counted=counted, otherwise=running)
        is_early = (t <= self.forward_window) | (t < self.warmup_iters)
        is_outlier = torch.zeros_like(is_early)
        if self.outlier_filtration and self.forward_window > 1:
            is_outlier = ~is_early & self._stands_out(batch, slot) & (self.skips_in_row < self.forward_window - 1)
        window.index_copy_(0, slot, torch.where(is_outlier, running, batch).to(window.dtype)[None])
        uses_batch = is_outlier if self.forward_window > 1 else torch.ones_like(is_outlier)
        var = torch.where(is_early | uses_batch, batch, _window_means(window)[1])
        is_unscaled = (t <= max(_UNSCALED_ITERS, self.warmup_iters)) | uses_batch
        ratio = ((var + self.eps).sqrt() / (running + self.eps).sqrt()).clamp(1 / 5, 5)
        ratio = torch.where(is_unscaled, 1, ratio)
        running.copy_(torch.where(is_outlier, running, self.momentum * running + (1 - self.momentum) * var))
        self.skip_counter.add_(is_outlier)
        self.skips_in_row.add_(1).mul_(is_outlier)
        return Step(var, ratio, t, uses_batch)

    def _stands_out(self, batch: Tensor, slot: Tensor) -> Tensor:
        """(1,), bool: whether the window's means lie far apart once ``batch`` is in it."""
        window = self.buffer_x2
        entered = window.index_copy(0, slot, batch.to(window.dtype)[None])
        arithmetic, geometric = _window_means(entered)
        threshold = window.sqrt().var() * self.forward_window
        # The means of equal slots differ by their rounding, where the threshold is 0.
        rounding = _ROUNDINGS * torch.finfo(window.dtype).eps * arithmetic
        return (arithmetic - geometric > threshold + rounding).any().reshape(1)


def _window_means(window: Tensor) -> tuple[Tensor, Tensor]:
    """Arithmetic and geometric mean of each channel over the slots of (slots, channels) that say something of it."""
    says = window > _EMPTY_SHARE * window.mean(0)
    count = says.sum(0).clamp(min=1)
    arithmetic = window.where(says, 0).sum(0) / count
    geometric = (window.where(says, 1).log().sum(0) / count).exp()
    return arithmetic, torch.where(says.any(0), geometric, 0)
