"""How much of the data and of the noise a sample holds at each time: x = alpha(t) data + sigma(t) noise."""

import bisect
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol, final

PathName = Literal["linear", "gvp", "variance-exploding", "variance-preserving"]
Betas = Literal["linear", "scaled-linear"]


class Path(Protocol):
    """A path from noise to data.

    An ODE solver steps in ``clock(t)`` on ``x / scale(t)``: in t on x itself where the network's own velocity is
    dx/dt; in sigma / alpha on x / alpha where t only counts training steps.
    """

    def alpha(self, t: float) -> float: ...
    def sigma(self, t: float) -> float: ...
    def rates(self, t: float) -> tuple[float, float]:
        """Derivatives of alpha / scale and sigma / scale by the clock."""

    def clock(self, t: float) -> float: ...
    def time_of(self, clock: float) -> float | None:
        """The time at which the clock shows this; None where the network knows no such time."""

    def scale(self, t: float) -> float: ...


@final
@dataclass(frozen=True, slots=True)
class Interpolation:
    """Linear: alpha = 1 - u, sigma = u; GVP: alpha = cos(pi u / 2), sigma = sin(pi u / 2). u is 1 at noise, 0 at data.

    With ``least_sigma`` the linear path ends in that much noise: sigma = least + (1 - least) u.
    """

    noise_time: float
    data_time: float
    is_trigonometric: bool = False
    least_sigma: float = 0.0

    def _share(self, t: float) -> float:
        return (t - self.data_time) / (self.noise_time - self.data_time)

    def alpha(self, t: float) -> float:
        u = self._share(t)
        return math.cos(math.pi / 2 * u) if self.is_trigonometric else 1.0 - u

    def sigma(self, t: float) -> float:
        u = self._share(t)
        return math.sin(math.pi / 2 * u) if self.is_trigonometric else self.least_sigma + (1.0 - self.least_sigma) * u

    def rates(self, t: float) -> tuple[float, float]:
        du = 1.0 / (self.noise_time - self.data_time)
        if not self.is_trigonometric:
            return -du, (1.0 - self.least_sigma) * du
        angle = math.pi / 2 * self._share(t)
        return -math.pi / 2 * math.sin(angle) * du, math.pi / 2 * math.cos(angle) * du

    def clock(self, t: float) -> float:
        return t

    def time_of(self, clock: float) -> float | None:
        return clock

    def scale(self, t: float) -> float:
        return 1.0


@final
@dataclass(frozen=True, slots=True)
class VarianceExploding:
    """alpha = 1, sigma = t."""

    def alpha(self, t: float) -> float:
        return 1.0

    def sigma(self, t: float) -> float:
        return t

    def rates(self, t: float) -> tuple[float, float]:
        return 0.0, 1.0

    def clock(self, t: float) -> float:
        return t

    def time_of(self, clock: float) -> float | None:
        return clock

    def scale(self, t: float) -> float:
        return 1.0


@final
@dataclass(frozen=True)
class VariancePreserving:
    """alpha = sqrt(abar[t]), sigma = sqrt(1 - abar[t]) for training step t = 0, 1, ...; t = -1 is the data end.

    abar is the running product of 1 - beta. Between training steps log(sigma / alpha) is interpolated, as diffusers
    does.

    Source: Ho et al., arXiv:2006.11239; the scaled-linear betas: Rombach et al., arXiv:2112.10752.
    """

    betas: Betas
    first_beta: float
    last_beta: float
    train_steps: int
    ends_in_data: bool

    @cached_property
    def alphas_cumprod(self) -> tuple[float, ...]:
        """abar, one number per training step."""
        first, last = self.first_beta, self.last_beta
        if self.betas == "scaled-linear":
            first, last = math.sqrt(first), math.sqrt(last)
        product, found = 1.0, []
        for i in range(self.train_steps):
            beta = first + (last - first) * i / max(self.train_steps - 1, 1)
            product *= 1.0 - (beta * beta if self.betas == "scaled-linear" else beta)
            found.append(product)
        return tuple(found)

    @cached_property
    def _log_ratios(self) -> tuple[float, ...]:
        return tuple(0.5 * math.log((1.0 - product) / product) for product in self.alphas_cumprod)

    def _product(self, t: float) -> float:
        if t == -1:
            return 1.0 if self.ends_in_data else self.alphas_cumprod[0]
        if t == int(t):
            return self.alphas_cumprod[int(t)]
        low = int(t)
        log_ratio = self._log_ratios[low] + (t - low) * (self._log_ratios[low + 1] - self._log_ratios[low])
        return 1.0 / (1.0 + math.exp(2.0 * log_ratio))

    def alpha(self, t: float) -> float:
        return math.sqrt(self._product(t))

    def sigma(self, t: float) -> float:
        return math.sqrt(1.0 - self._product(t))

    def rates(self, t: float) -> tuple[float, float]:
        return 0.0, 1.0

    def clock(self, t: float) -> float:
        return self.sigma(t) / self.alpha(t)

    def time_of(self, clock: float) -> float | None:
        wanted = math.log(clock) if clock > 0 else -math.inf
        # Rounding must not push the ends of the table out of it.
        if not self._log_ratios[0] - 1e-12 <= wanted <= self._log_ratios[-1] + 1e-12:
            return None
        high = min(max(bisect.bisect_left(self._log_ratios, wanted), 1), len(self._log_ratios) - 1)
        low = self._log_ratios[high - 1]
        found = high - 1 + (wanted - low) / (self._log_ratios[high] - low)
        return round(found) if abs(found - round(found)) < 1e-9 else found

    def scale(self, t: float) -> float:
        return self.alpha(t)
