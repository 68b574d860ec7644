"""Region normalization: foreground and background of images, each by its own statistics."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from flowopt.errors import UserError
from flowopt.ops._channels import computing_dtype, per_channel, require_channels, token_sum
from flowopt.ops._reduced import all_reduced

# As in torch's batch norm, on which the published form is built.
_EPS = 1e-5
_KERNEL = 7


class RegionNorm(nn.Module):
    """Region norm by a given mask (RN-B): each region by its mean and variance over the whole batch.

        z = (x - mean_r) / sqrt(var_r + 1e-5 N / S_r) in region r, of S_r of all N pixels
        y = (1 + gamma_r) z + foreground_beta + background_beta

    Both shifts are added everywhere, as published. Statistics are those of the batch in eval mode, too: a result
    depends on the rest of its batch, and nothing folds. A region without pixels yields 0 before the shifts. Where the
    mask is of another size it is resized by nearest neighbours.

    In a distributed run the statistics are those of all processes' pixels together.

    Args:
        channels: C.
        device: of parameters.
        dtype: of parameters, floating point.

    Attributes:
        foreground_gamma, foreground_beta, background_gamma, background_beta: (C,). The names are the authors'.

    Shapes: x (samples, C, height, width); mask (samples, 1, any height, any width), bool or numbers: above one half is
    foreground. The result has x's shape and dtype; statistics are float32 or wider.

    Raises:
        UserError: x is no batch of images of C channels, or the mask has not its number of samples.

    Source: Yu et al., "Region Normalization for Image Inpainting", arXiv:1911.10375, section 3; the authors' code.
    """

    def __init__(
        self, channels: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.channels = channels

        def zeros() -> nn.Parameter:
            return nn.Parameter(torch.zeros(channels, device=device, dtype=dtype))

        self.foreground_gamma = zeros()
        self.foreground_beta = zeros()
        self.background_gamma = zeros()
        self.background_beta = zeros()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        _require_images(x, self.channels)
        if mask.dim() != 4 or mask.shape[:2] != (x.shape[0], 1):
            raise UserError(f"The mask has shape {tuple(mask.shape)}, but should be ({x.shape[0]}, 1, height, width).")
        value = x.to(computing_dtype(x, self.foreground_gamma))
        foreground = functional.interpolate(mask.to(value.dtype), size=x.shape[2:], mode="nearest") > 0.5
        gamma = torch.where(foreground, _row(self.foreground_gamma, x), _row(self.background_gamma, x))
        shift = _row(self.foreground_beta + self.background_beta, x)
        return ((1 + gamma) * _by_region(value, foreground) + shift).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.channels}"


class LearnedRegionNorm(nn.Module):
    """Region norm that finds its regions (RN-L) where a learned importance reaches a threshold.

        importance = sigmoid(conv1([mean over channels, maximum over channels]))
        y = (1 + gamma_conv(importance)) z + beta_conv(importance)

    with z as in ``RegionNorm`` and the foreground where importance >= threshold, which carries no gradient. All
    convolutions are 7 x 7 on one or two channels; gain and shift are one number per pixel.

    Args:
        channels: C.
        threshold: importance from which a pixel is foreground.
        device: of parameters.
        dtype: of parameters, floating point.

    Attributes:
        sa: the convolutions ``conv1``, ``gamma_conv`` and ``beta_conv``, by the authors' names.

    Shapes, statistics, distributed runs, errors and source as in ``RegionNorm``.
    """

    def __init__(
        self,
        channels: int,
        *,
        threshold: float = 0.8,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.threshold = threshold

        def convolution(inputs: int, bias: bool) -> nn.Conv2d:
            return nn.Conv2d(inputs, 1, _KERNEL, padding=_KERNEL // 2, bias=bias, device=device, dtype=dtype)

        self.sa = nn.ModuleDict(
            {
                "conv1": convolution(2, bias=False),
                "gamma_conv": convolution(1, bias=True),
                "beta_conv": convolution(1, bias=True),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        _require_images(x, self.channels)
        seen = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        importance: Tensor = self.sa["conv1"](seen).sigmoid()
        gamma: Tensor = self.sa["gamma_conv"](importance)
        beta: Tensor = self.sa["beta_conv"](importance)
        value = x.to(computing_dtype(x, gamma))
        z = _by_region(value, importance.detach() >= self.threshold)
        return ((1 + gamma) * z + beta).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.channels}, threshold={self.threshold}"


def _require_images(x: Tensor, channels: int) -> None:
    require_channels(x, channels, 1)
    if x.dim() != 4:
        raise UserError(f"The input has shape {tuple(x.shape)}, but should be (samples, {channels}, height, width).")


def _row(vector: Tensor, x: Tensor) -> Tensor:
    return per_channel(vector, x, 1)


def _by_region(x: Tensor, foreground: Tensor) -> Tensor:
    """Each pixel normalised by its region; ``foreground`` (samples, 1, height, width), bool."""
    inside = foreground.to(x.dtype)
    return _normalised(x, inside) + _normalised(x, 1 - inside)


def _normalised(x: Tensor, inside: Tensor) -> Tensor:
    """One region by its mean and variance; 0 outside of it."""
    pixels = torch.full((), inside.numel(), dtype=x.dtype, device=x.device)
    counts = all_reduced(torch.stack([inside.sum(), pixels]))
    # A region of no pixel counts as one: its sums are 0.
    size, total = counts[0].clamp(min=1), counts[1]
    mean = all_reduced(token_sum(x * inside, 1)) / size
    away = (x - _row(mean, x)) * inside
    var = all_reduced(token_sum(away.square(), 1)) / size
    # The published form fills the other region with the mean, which divides the variance by total / size.
    return away / _row((var + _EPS * total / size).sqrt(), x)
