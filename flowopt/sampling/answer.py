"""One output of the network, as data, noise, velocity or score: each a sum of multiples of what is there."""

import math
from dataclasses import dataclass
from typing import final

from flowopt.errors import UserError
from flowopt.sampling.convention import Convention
from flowopt.sampling.paths import Path
from flowopt.sampling.trace import Combination


@final
@dataclass(frozen=True, slots=True)
class Answer:
    """What the network says about a sample x = alpha data + sigma noise at time t.

    Attributes:
        sample: x.
        t: in the convention's time.
        output: of the network.
    """

    convention: Convention
    path: Path
    sample: Combination
    t: float
    output: Combination

    @property
    def velocity(self) -> Combination:
        """d (x / scale) / d clock: dx/dt, and the noise where the path scales (see Path)."""
        if self.convention.prediction in ("velocity", "average-velocity"):
            return self.output
        alpha_rate, sigma_rate = self.path.rates(self.t)
        found = sigma_rate * self.noise
        return found + alpha_rate * self.data if alpha_rate else found

    @property
    def data(self) -> Combination:
        """The data that the network expects under the noise."""
        x, kind = self.sample, self.convention.prediction
        alpha, sigma = self.path.alpha(self.t), self.path.sigma(self.t)
        if kind == "sample":
            return self.output
        if kind == "v-prediction":
            return alpha * x - sigma * self.output
        if kind == "preconditioned":
            skip, out, _ = wrapper(self.convention, sigma / alpha)
            return (skip / alpha) * x + out * self.output
        if kind == "noise":
            self._require(alpha, "holds no data", "first_time")
            return (x - sigma * self.output) / alpha
        alpha_rate, sigma_rate = self.path.rates(self.t)
        return (sigma_rate * x - sigma * self.output) / (alpha * sigma_rate - sigma * alpha_rate)

    @property
    def noise(self) -> Combination:
        """The noise that the network expects over the data."""
        x, kind = self.sample, self.convention.prediction
        alpha, sigma = self.path.alpha(self.t), self.path.sigma(self.t)
        if kind == "noise":
            return self.output
        if kind == "v-prediction":
            return sigma * x + alpha * self.output
        if kind in ("velocity", "average-velocity"):
            alpha_rate, sigma_rate = self.path.rates(self.t)
            return (alpha * self.output - alpha_rate * x) / (alpha * sigma_rate - sigma * alpha_rate)
        self._require(sigma, "holds no noise", "last_time")
        return (x - alpha * self.data) / sigma

    @property
    def score(self) -> Combination:
        """The gradient of the log density: minus the noise over sigma."""
        sigma = self.path.sigma(self.t)
        self._require(sigma, "holds no noise", "last_time")
        return self.noise / -sigma

    def _require(self, part: float, what: str, option: str) -> None:
        if part == 0:
            raise UserError(
                f"at t={self.t} a sample {what}, and prediction={self.convention.prediction!r} does not say what a "
                "solver of this kind asks there",
                hint=f"write {option} a little off {self.t}",
            )


def wrapper(convention: Convention, ratio: float) -> tuple[float, float, float]:
    """c_skip, c_out and c_in of EDM's wrapper, for sigma / alpha.

    Source: Karras et al., arXiv:2206.00364, table 1.
    """
    spread = convention.sigma_data
    total = math.hypot(ratio, spread)
    return (spread / total) ** 2, ratio * spread / total, 1.0 / total
