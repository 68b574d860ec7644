"""Unified Normalization's training iterations written as loops over numbers: what the module is compared with."""

import math
from dataclasses import dataclass, field

Rows = list[list[float]]


def _geometric(numbers: list[float]) -> float:
    return math.prod(numbers) ** (1 / len(numbers))


@dataclass
class UnifiedByHand:
    """The published forward and backward of one norm, on rows of channels that are nowhere 0 throughout.

    A skipped step leaves ``running`` alone, which is the module's first deviation.
    """

    weight: list[float]
    bias: list[float]
    window: int = 4
    warmup_iters: int = 0
    filters: bool = False
    unscaled_iters: int = 1000
    eps: float = 1e-5
    momentum: float = 0.9
    t: int = 0
    skipped: int = 0
    running: list[float] = field(default_factory=list)
    ema: list[float] = field(default_factory=list)
    squares: Rows = field(default_factory=list)
    products: Rows = field(default_factory=list)

    def __post_init__(self) -> None:
        channels = len(self.weight)
        self.running = self.running or [1.0] * channels
        self.ema = self.ema or [0.0] * channels
        self.squares = self.squares or [[0.0] * channels for _ in range(self.window)]
        self.products = self.products or [[0.0] * channels for _ in range(self.window)]

    def step(self, rows: Rows, gradients: Rows, padding: list[bool]) -> tuple[Rows, Rows, list[float], list[float]]:
        """(y, dx, dweight, dbias) of one iteration."""
        self.t += 1
        channels, slot = len(self.weight), self.t % self.window
        real = [row for row, is_padding in zip(rows, padding, strict=True) if not is_padding]
        q = [sum(row[c] ** 2 for row in real) / len(real) for c in range(channels)]
        is_early = self.t <= self.window or self.t < self.warmup_iters
        skips = self.filters and not is_early and self._stands_out(q, slot)
        self.skipped += skips
        self.squares[slot] = list(self.running) if skips else q
        y = [[0.0] * channels for _ in rows]
        dx = [[0.0] * channels for _ in rows]
        dweight, dbias = [], []
        for c in range(channels):
            var = q[c] if is_early or skips else _geometric([row[c] for row in self.squares])
            ratio = math.sqrt(var + self.eps) / math.sqrt(self.running[c] + self.eps)
            ratio = min(5.0, max(0.2, ratio))
            if self.t <= max(self.unscaled_iters, self.warmup_iters) or skips:
                ratio = 1.0
            if not skips:
                self.running[c] = self.momentum * self.running[c] + (1 - self.momentum) * var
            z = [row[c] / math.sqrt(var + self.eps) for row in rows]
            g = [gradient[c] * self.weight[c] * ratio for gradient in gradients]
            mean = sum(a * b for a, b in zip(g, z, strict=True)) / len(rows)
            self.products[slot][c] = self.ema[c] if skips else mean
            average = mean if is_early or skips else sum(row[c] for row in self.products) / self.window
            self.ema[c] = self.momentum * self.ema[c] + (1 - self.momentum) * average
            pull = average if skips else self.ema[c]
            for n in range(len(rows)):
                y[n][c] = self.weight[c] * z[n] + self.bias[c]
                dx[n][c] = (g[n] - pull * z[n]) / math.sqrt(var + self.eps)
            dweight.append(sum(gradients[n][c] * ratio * z[n] for n in range(len(rows))))
            dbias.append(sum(gradients[n][c] for n in range(len(rows))))
        return y, dx, dweight, dbias

    def _stands_out(self, q: list[float], slot: int) -> bool:
        roots = [math.sqrt(number) for row in self.squares for number in row]
        centre = sum(roots) / len(roots)
        spread = sum((root - centre) ** 2 for root in roots) / (len(roots) - 1)
        entered = [q if position == slot else row for position, row in enumerate(self.squares)]
        columns = list(zip(*entered, strict=True))
        return any(sum(column) / len(column) - _geometric(list(column)) > spread * self.window for column in columns)
