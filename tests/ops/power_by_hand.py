"""PowerNorm's training iterations written as loops over numbers: what the module is compared with."""

import math
from dataclasses import dataclass, field

Rows = list[list[float]]


@dataclass
class PowerByHand:
    """The published forward and backward of one norm without group scaling, on rows of channels."""

    weight: list[float]
    bias: list[float]
    warmup_iters: int
    eps: float = 1e-5
    alpha_fwd: float = 0.9
    alpha_bkw: float = 0.9
    t: int = 0
    phi: list[float] = field(default_factory=list)
    nu: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.phi = self.phi or [1.0] * len(self.weight)
        self.nu = self.nu or [0.0] * len(self.weight)

    def step(self, rows: Rows, gradients: Rows, padding: list[bool]) -> tuple[Rows, Rows, list[float], list[float]]:
        """(y, dx, dweight, dbias) of one iteration."""
        self.t += 1
        y = [[0.0] * len(row) for row in rows]
        dx = [[0.0] * len(row) for row in rows]
        dweight, dbias = [], []
        real = [position for position, is_padding in enumerate(padding) if not is_padding]
        for c in range(len(self.weight)):
            v = sum(rows[n][c] ** 2 for n in real) / len(real)
            divisor = v if self.t <= self.warmup_iters else self.phi[c]
            if self.t < self.warmup_iters:
                self.phi[c] = self.phi[c] * (self.t - 1) / self.t + v / self.t
            self.phi[c] = self.alpha_fwd * self.phi[c] + (1 - self.alpha_fwd) * v
            z = [row[c] / math.sqrt(divisor + self.eps) for row in rows]
            nu = self.nu[c]
            corrected = []
            for n in range(len(rows)):
                y[n][c] = self.weight[c] * z[n] + self.bias[c]
                corrected.append(gradients[n][c] * self.weight[c] - (1 - self.alpha_bkw) * nu * z[n])
                dx[n][c] = corrected[n] / math.sqrt(v + self.eps)
            self.nu[c] = nu + sum(a * b for a, b in zip(corrected, z, strict=True)) / len(rows)
            dweight.append(sum(gradients[n][c] * z[n] for n in range(len(rows))))
            dbias.append(sum(gradients[n][c] for n in range(len(rows))))
        return y, dx, dweight, dbias
