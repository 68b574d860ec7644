"""UnMix-TNS: test-time statistics of each sample, mixed with stored components of the test stream."""

import math
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from flowopt.errors import UserError
from flowopt.ops._channels import computing_dtype, per_channel, require_channels
from flowopt.ops._reduced import all_reduced

_TEMPERATURE = 0.07
# Share of the source variance that goes into the spread of the components' means.
_SPREAD = 0.5


class UnMixTNS(nn.Module):
    """Normalise each sample by a mixture of its own statistics and K stored components.

    With (m, v) the sample's mean and biased variance over space, and (m_k, v_k) the stored components:

        p_k = softmax over k of cos(m, m_k) / 0.07
        M_k = (1 - p_k) m_k + p_k m,  V_k = (1 - p_k) v_k + p_k v
        mean = mean_k M_k,  var = mean_k V_k + mean_k M_k^2 - mean^2
        y[c] = weight[c] * (x[c] - mean[c]) / sqrt(var[c] + eps) + bias[c]

    Every call, in training and in eval mode, then moves the components, m_k <- m_k + momentum mean over the batch of
    p_k (m - m_k), v_k alike, until ``settle``: then a call is a pure function of its input, though still not an affine
    map. p carries no gradient. An input without space, (samples, channels), is normalised by the source statistics.

    In a distributed run the components move by the mean over all processes' samples.

    Args:
        channels: C.
        components: K.
        momentum: by which a call moves the components.
        eps: added to the variance.
        seed: of the components' spread about the source mean.
        device: of parameters and buffers.
        dtype: of parameters and buffers, floating point.

    Attributes:
        weight, bias: (C,).
        running_means_mat, running_vars_mat: buffers (K, C).
        source_mean, source_var: buffers (C,). All names are the authors'.

    Shapes: x (samples, C, ...) or (samples, C). The result has x's shape and dtype; statistics are float32 or wider.

    Raises:
        UserError: axis 1 has not C entries, or there is no component.

    Source: Tomar et al., "Un-Mixing Test-Time Normalization Statistics: Combatting Label Temporal Correlation",
    arXiv:2401.08328; the authors' code.
    """

    weight: nn.Parameter
    bias: nn.Parameter
    running_means_mat: Tensor
    running_vars_mat: Tensor
    source_mean: Tensor
    source_var: Tensor

    def __init__(
        self,
        channels: int,
        *,
        components: int = 16,
        momentum: float = 0.1,
        eps: float = 1e-5,
        seed: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if components < 1:
            raise UserError(f"components={components} must be at least 1.")
        self.channels = channels
        self.components = components
        self.momentum = momentum
        self.eps = eps
        self.is_settled = False
        self.weight = nn.Parameter(torch.ones(channels, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(channels, device=device, dtype=dtype))
        self.register_buffer("running_means_mat", torch.zeros(components, channels, device=device, dtype=dtype))
        self.register_buffer("running_vars_mat", torch.ones(components, channels, device=device, dtype=dtype))
        self.register_buffer("source_mean", torch.zeros(channels, device=device, dtype=dtype))
        self.register_buffer("source_var", torch.ones(channels, device=device, dtype=dtype))
        self._spread(seed)

    @classmethod
    def from_batch_norm(
        cls,
        norm: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d,
        *,
        components: int = 16,
        batch_size: int = 64,
        largest_batch_size: int = 64,
        seed: int = 0,
    ) -> Self:
        """The same norm at test time; parameters and statistics are copied.

        Args:
            batch_size: of the test stream. The momentum m of ``norm`` becomes
                1 - (1 - m)^(batch_size / largest_batch_size), so that small batches move the components less.
        """
        if norm.running_mean is None or norm.running_var is None or norm.momentum is None:
            raise UserError("This batch norm stores no moving statistics, so there is no source to start from.")
        made = cls(
            norm.num_features,
            components=components,
            momentum=1 - (1 - norm.momentum) ** (batch_size / largest_batch_size),
            eps=norm.eps,
            device=norm.running_mean.device,
            dtype=norm.running_mean.dtype,
        )
        with torch.no_grad():
            made.source_mean.copy_(norm.running_mean)
            made.source_var.copy_(norm.running_var)
            if norm.affine:
                made.weight.copy_(norm.weight)
                made.bias.copy_(norm.bias)
        made._spread(seed)
        return made.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        axis = require_channels(x, self.channels, 1)
        value = x.to(computing_dtype(x, self.weight))
        if x.dim() == 2:
            mean, var = self.source_mean[None], self.source_var[None]
        else:
            mean, var = self._statistics(value)
        trailing = [1] * (x.dim() - 2)
        z = (value - mean.reshape(*mean.shape, *trailing)) / (var + self.eps).sqrt().reshape(*var.shape, *trailing)
        return (per_channel(self.weight, x, axis) * z + per_channel(self.bias, x, axis)).to(x.dtype)

    def settle(self) -> None:
        """From now on the components no longer move.

        Not part of the state dict: to resume from a checkpoint, call it again.
        """
        self.is_settled = True

    def extra_repr(self) -> str:
        return f"{self.channels}, components={self.components}, momentum={self.momentum}, eps={self.eps}"

    @torch.no_grad()
    def _spread(self, seed: int) -> None:
        """Components about the source: their means spread as far as their variances shrink."""
        spread = _SPREAD if self.components > 1 else 0.0
        noise = torch.randn(self.components, self.channels, generator=torch.Generator().manual_seed(seed))
        # Unbiased, as if the components were drawn from the source: hence K / (K - 1).
        width = math.sqrt(spread * self.components / max(self.components - 1, 1)) * self.source_var.sqrt()
        self.running_means_mat.copy_(self.source_mean + width * noise.to(width))
        self.running_vars_mat.copy_((1 - spread) * self.source_var.expand_as(self.running_vars_mat))

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of each sample, (samples, channels); the components move on."""
        space = list(range(2, x.dim()))
        own_mean, own_var = x.mean(space), x.var(space, correction=0)
        means, variances = self.running_means_mat.to(x.dtype), self.running_vars_mat.to(x.dtype)
        with torch.no_grad():
            cosines = functional.normalize(own_mean, dim=1) @ functional.normalize(means, dim=1).T
            shares = (cosines / _TEMPERATURE).softmax(1)[:, :, None]
        mixed_means = (1 - shares) * means + shares * own_mean[:, None]
        mixed_variances = (1 - shares) * variances + shares * own_var[:, None]
        mean = mixed_means.mean(1)
        # The spread of the means, written so that it cannot cancel below 0.
        var = mixed_variances.mean(1) + (mixed_means - mean[:, None]).square().mean(1)
        if not self.is_settled:
            with torch.no_grad():
                self._move(shares * (own_mean[:, None] - means), shares * (own_var[:, None] - variances))
        return mean, var

    def _move(self, towards_mean: Tensor, towards_var: Tensor) -> None:
        """Add the batch's mean of (samples, components, channels), over all processes, by ``momentum``."""
        totals = all_reduced(torch.stack([towards_mean.sum(0), towards_var.sum(0)]))
        samples = all_reduced(torch.full((), len(towards_mean), dtype=totals.dtype, device=totals.device))
        change = self.momentum * totals / samples.clamp(min=1)
        self.running_means_mat.add_(change[0])
        self.running_vars_mat.add_(change[1])
