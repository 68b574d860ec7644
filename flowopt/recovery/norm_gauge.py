"""One norm under measurement: what goes in and comes out, vector by vector."""

from collections.abc import Callable
from typing import Literal, final

import torch
from torch import Tensor, fx

from flowopt.analysis.norm_fit import NormFit
from flowopt.analysis.norm_parts import NormKind, NormParts, batch_affine, gain_and_shift
from flowopt.analysis.token_axes import TokenAxes, kept_rows
from flowopt.errors import UserError
from flowopt.recovery.channel_moments import ChannelMoments

Constant = Callable[[fx.Node], Tensor]
Init = Literal["frozen-sigma", "least-squares"]
# A variance that is smaller beside the mean square is what float64 leaves of a constant.
_CONSTANT = 1e-12
_TINY = torch.finfo(torch.float64).tiny


@final
class NormGauge:
    """Gathers what a norm reads and gives, and says which fixed scale and shift are nearest to it.

    Deviations are those that the norm divides by: of a vector about its mean where the norm subtracts that, of the
    group of one sample for group norms, with epsilon. Of a batch norm, which divides by stored numbers, they are roots
    of mean squares.

    Attributes:
        parts: of the norm.
        limits: (groups,), vectors with a larger deviation are left out; None: all count.
    """

    def __init__(self, parts: NormParts, axes: TokenAxes | None) -> None:
        self.parts = parts
        self.limits: Tensor | None = None
        self._axes = axes
        self._source: Tensor | None = None
        self._real = torch.zeros(0, dtype=torch.bool)
        self._deviations: list[Tensor] = []
        self._moments = ChannelMoments(parts.channels)

    def restart(self, limits: Tensor) -> None:
        """Gather again, without the vectors whose deviation exceeds the limit of their group."""
        self.limits = limits
        self._deviations, self._moments = [], ChannelMoments(self.parts.channels)

    def read(self, value: Tensor, real: Tensor | None, batch: int) -> None:
        """Take the norm's input.

        Raises:
            UserError: a real token has a NaN or an infinity.
        """
        self._source = value
        self._real = self._rows_of(value, real)
        if not bool(torch.isfinite(self._rows(value)[self._real]).all()):
            where = f" ({self.parts.norm.name} reads {self.parts.source.name})"
            raise UserError(
                f"batch {batch} gives the norm {self.parts.output.name} a NaN or an infinity{where}",
                why="no scale can be measured with it",
                hint="check that batch, and the model's outputs for it",
            )

    def written(self, value: Tensor) -> None:
        """Take the norm's output, for the input that was read last."""
        assert self._source is not None
        x, y = (self._rows(v).to(torch.float64) for v in (self._source, value))
        deviations, counted = self._deviations_of(x, self._source.shape[0])
        self._deviations.append(deviations[counted].cpu())
        kept = self._real[:, None]
        if self.limits is not None:
            kept = kept & self._on_rows(deviations <= self.limits.to(deviations.device), x)
        self._moments.add(x, y, kept)
        self._source = None

    def deviations(self) -> Tensor:
        """(vectors, groups), float64: of all vectors of real tokens so far."""
        return torch.cat(self._deviations) if self._deviations else torch.zeros(0, self.parts.groups)

    def fit(self, init: Init | None, constant: Constant) -> NormFit:
        """What was found; other arguments as for ``calibrate`` and ``gain_and_shift``."""
        all_of_them = self.deviations()
        kept = torch.ones_like(all_of_them, dtype=torch.bool) if self.limits is None else all_of_them <= self.limits
        count = kept.sum(0)
        first, second = (torch.where(kept, all_of_them**power, 0.0).sum(0) / count for power in (1, 2))
        # Without epsilon zeros have no deviation: 0 then, not 0 / 0.
        sigmas = second / first.clamp_min(_TINY)
        live = self.parts.kind is not NormKind.BATCH
        scale, shift = self._affine(init, sigmas, constant) if live else batch_affine(self.parts, constant)
        median = all_of_them.median(0).values.clamp_min(_TINY)
        return NormFit(
            site=self.parts.output.name,
            tokens=int(count.sum()),
            massive=int((~kept).sum()),
            # CV^2 / (1 + CV^2) is 1 - E[s]^2 / E[s^2]; groups have scales of their own.
            score=float((1.0 - first.square() / second.clamp_min(_TINY)).clamp_min(0.0).mean().sqrt()) if live else 0.0,
            massive_ratio=float((all_of_them.amax(0) / median).max()),
            sigma=float(sigmas.mean()),
            mean=self._moments.mean_x,
            mean_square=self._moments.mean_square_x,
            scale=scale.cpu(),
            shift=shift.cpu(),
        )

    def _affine(
        self, init: Init | None, sigmas: Tensor, constant: Callable[[fx.Node], Tensor]
    ) -> tuple[Tensor, Tensor]:
        gain, shift = (vector.cpu() for vector in gain_and_shift(self.parts, constant))
        width = self.parts.channels // self.parts.groups
        frozen = gain / sigmas.repeat_interleave(width)
        centred = self.parts.kind in (NormKind.LAYER, NormKind.GROUP)
        moments = self._moments
        if init == "least-squares" or (init is None and centred):
            varies = moments.variance_x > _CONSTANT * moments.mean_square_x
            slope = torch.where(varies, moments.joint / moments.spread_x.where(varies, 1.0), frozen)
            return slope, moments.mean_y - slope * moments.mean_x
        if not centred:
            return frozen, shift
        # The mean that the norm would subtract, as far as it is the same everywhere.
        means = moments.mean_x.reshape(-1, width).mean(1).repeat_interleave(width)
        return frozen, shift - frozen * means

    def _rows(self, value: Tensor) -> Tensor:
        return value.movedim(self.parts.axis, -1).reshape(-1, self.parts.channels)

    def _rows_of(self, value: Tensor, real: Tensor | None) -> Tensor:
        """Which rows are of real tokens."""
        if real is None or self._axes is None:
            count = value.numel() // self.parts.channels
            return torch.ones(count, dtype=torch.bool, device=value.device)
        return kept_rows(real.to(value.device), self._axes, value, self.parts.axis)

    def _deviations_of(self, x: Tensor, samples: int) -> tuple[Tensor, Tensor]:
        """(vectors, groups), and which vectors are of real tokens."""
        kind, eps = self.parts.kind, self.parts.eps
        if kind is NormKind.GROUP:
            grouped = x.reshape(samples, -1, self.parts.groups, self.parts.channels // self.parts.groups)
            variance = grouped.var((1, 3), correction=0)
            return (variance + eps).sqrt(), self._real.reshape(samples, -1).any(1)
        square = x.var(1, correction=0, keepdim=True) if kind is NormKind.LAYER else x.square().mean(1, keepdim=True)
        return (square + (eps if kind is not NormKind.BATCH else 0.0)).sqrt(), self._real

    def _on_rows(self, vectors: Tensor, x: Tensor) -> Tensor:
        """What holds for each vector, for each row and channel of it."""
        if self.parts.kind is not NormKind.GROUP:
            return vectors
        width = self.parts.channels // self.parts.groups
        per_channel = vectors.repeat_interleave(width, 1)
        return per_channel.repeat_interleave(x.shape[0] // max(vectors.shape[0], 1), 0)
