"""Layer norm whose gain and shift depend on a diffusion model's time, and its table over fixed times."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from flowopt.errors import UserError


class TimeDependentLayerNorm(nn.Module):
    """Layer norm with gain and shift that move between two vectors with the log signal-to-noise ratio.

        p(t) = param1 + sigmoid(w tau + nodecay_bias) (param0 - param1),  tau = log_snr / 4,  w = nodecay_weight + 1
        y = weight(t) * (x - mean(x)) / sqrt(var(x) + eps) + bias(t)

    each per channel. For a sampler with fixed times, ``table`` computes gains and shifts beforehand.

    Args:
        channels: C.
        eps: added to the variance.
        device: of parameters.
        dtype: of parameters, floating point.

    Attributes:
        weight, bias: modules with the parameters param0, param1, nodecay_weight and nodecay_bias, each (C,). The names
            are the authors'.

    Shapes: x (samples, ..., C); log_snr (), (1,) or (samples,). The result has x's shape and dtype.

    Raises:
        UserError: the last axis has not C entries, or log_snr neither one entry nor one per sample.

    Source: Liu et al., "Alleviating Distortion in Image Generation via Multi-Resolution Diffusion Models and
    Time-Dependent Layer Normalization", arXiv:2406.09416; the authors' code, which keeps the time as hidden state of
    the module where this takes it as an argument.
    """

    def __init__(
        self,
        channels: int,
        *,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.eps = eps
        self.weight = _TimeDependentVector(channels, 1.0, device, dtype)
        self.bias = _TimeDependentVector(channels, 0.0, device, dtype)

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        _require_last(x, self.channels)
        if log_snr.dim() > 1 or log_snr.numel() not in (1, len(x)):
            raise UserError(
                f"log_snr has shape {tuple(log_snr.shape)}, but should have one entry, or one for each of the "
                f"{len(x)} samples."
            )
        times = log_snr.reshape(-1)
        return _normalised(x, self.weight(times), self.bias(times), self.eps)

    @torch.no_grad()
    def table(self, log_snrs: Tensor) -> "TimeTableLayerNorm":
        """The same norm for the times of one sampler.

        Args:
            log_snrs: (T,), distinct.
        """
        return TimeTableLayerNorm(log_snrs, self.weight(log_snrs), self.bias(log_snrs), eps=self.eps)

    def extra_repr(self) -> str:
        return f"{self.channels}, eps={self.eps}"


class TimeTableLayerNorm(nn.Module):
    """A time-dependent layer norm at fixed times: gain and shift are rows of a table.

    Args:
        log_snrs: (T,), distinct.
        weight, bias: (T, C), a row for each time.
        eps: added to the variance.

    Attributes:
        log_snrs, weight, bias: buffers.

    Shapes: x (samples, ..., C). The result has x's shape and dtype.

    Raises:
        UserError: times repeat, or the table has not a row for each; in a call, a time that has no row.
    """

    log_snrs: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, log_snrs: Tensor, weight: Tensor, bias: Tensor, *, eps: float = 1e-5) -> None:
        super().__init__()
        if log_snrs.dim() != 1 or not len(log_snrs) == len(weight) == len(bias):
            raise UserError(
                f"{tuple(log_snrs.shape)} times with gains {tuple(weight.shape)} and shifts {tuple(bias.shape)}: each "
                "time needs one row of both."
            )
        if len(log_snrs.unique()) < len(log_snrs):
            raise UserError("The times of a table must differ, but log_snrs holds one twice.")
        self.eps = eps
        self.register_buffer("log_snrs", log_snrs.detach().clone())
        self.register_buffer("weight", weight.detach().clone())
        self.register_buffer("bias", bias.detach().clone())

    def forward(self, x: Tensor, log_snr: float) -> Tensor:
        _require_last(x, self.weight.shape[1])
        # Compared in the table's dtype: a time that was rounded to it there is rounded to it here.
        rows = (self.log_snrs == log_snr).nonzero().flatten()
        if len(rows) != 1:
            raise UserError(
                f"log_snr={log_snr} is none of the {len(self.log_snrs)} times of this table.",
                why="A table holds gains and shifts for the times of one sampler, and nothing between them.",
                hint="Make a table of the times that are asked for, or call the TimeDependentLayerNorm itself.",
            )
        return _normalised(x, self.weight[rows], self.bias[rows], self.eps)

    def extra_repr(self) -> str:
        return f"{len(self.log_snrs)} times, {self.weight.shape[1]}, eps={self.eps}"


class _TimeDependentVector(nn.Module):
    """(times, channels) for (times,)."""

    def __init__(
        self, channels: int, initial: float, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> None:
        super().__init__()
        self.param0 = nn.Parameter(torch.full((channels,), initial, device=device, dtype=dtype))
        self.param1 = nn.Parameter(torch.full((channels,), initial, device=device, dtype=dtype))
        # Stored without the 1, so that weight decay, were it not left out, would pull towards the identity.
        self.nodecay_weight = nn.Parameter(torch.zeros(channels, device=device, dtype=dtype))
        self.nodecay_bias = nn.Parameter(torch.zeros(channels, device=device, dtype=dtype))

    def forward(self, log_snr: Tensor) -> Tensor:
        tau = log_snr.to(self.param0.dtype)[:, None] / 4
        share = ((self.nodecay_weight + 1) * tau + self.nodecay_bias).sigmoid()
        return self.param1 + share * (self.param0 - self.param1)


def _require_last(x: Tensor, channels: int) -> None:
    if x.dim() < 2 or x.shape[-1] != channels:
        raise UserError(f"The input has shape {tuple(x.shape)}, but should be (samples, ..., {channels}).")


def _normalised(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer norm over the last axis; ``weight`` and ``bias`` (1 or samples, channels)."""
    between = [1] * (x.dim() - 2)
    value = x.to(torch.promote_types(x.dtype, weight.dtype))
    z = functional.layer_norm(value, value.shape[-1:], eps=eps)
    gain, shift = (rows.reshape(len(rows), *between, rows.shape[1]) for rows in (weight, bias))
    return (gain * z + shift).to(x.dtype)
