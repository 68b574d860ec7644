"""Small networks that samplers run, each with something to go wrong, and the loops they are checked against."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.sampling import SamplerSpec
from tests.zoo.randomise import randomise

CHANNELS, SIZE, LABELS, TEXT = 4, 6, 10, 12
DTYPE = torch.float32


def embedded(time: Tensor, width: int) -> Tensor:
    """Sines and cosines of a time, [batch] -> [batch, width]."""
    frequencies = torch.exp(-math.log(100.0) * torch.arange(width // 2, dtype=torch.float32) / (width // 2))
    angles = time.to(torch.float32)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class Timed(nn.Module):
    """A convolution, modulated by the time."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 2 * CHANNELS))
        self.first = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.norm = nn.GroupNorm(2, CHANNELS)
        self.last = nn.Conv2d(CHANNELS, CHANNELS, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        scale, shift = self.time(embedded(t, 8).to(x.dtype))[:, :, None, None].chunk(2, dim=1)
        y: Tensor = self.last((self.norm(self.first(x)) * (1 + scale) + shift).tanh())
        return y


class Labelled(Timed):
    """The same, with a label beside the time."""

    def __init__(self) -> None:
        super().__init__()
        self.label = nn.Embedding(LABELS, 2 * CHANNELS)

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:  # type: ignore[override]  # one input more
        scale, shift = (self.time(embedded(t, 8).to(x.dtype)) + self.label(label))[:, :, None, None].chunk(2, dim=1)
        y: Tensor = self.last((self.norm(self.first(x)) * (1 + scale) + shift).tanh())
        return y


class Prompted(Timed):
    """The time first, a text of free length, an input that is not one per sample, and one that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(CHANNELS, TEXT)
        self.value = nn.Linear(TEXT, CHANNELS)

    def forward(self, t: Tensor, x: Tensor, text: Tensor, place: Tensor, spare: Tensor) -> Tensor:  # type: ignore[override]
        rows = x.flatten(2).transpose(1, 2)
        attended = (self.query(rows) @ text.transpose(1, 2) * 0.3).softmax(-1) @ self.value(text)
        y = super().forward(x, t)
        return y + attended.transpose(1, 2).reshape(x.shape) * place


class Averaged(Timed):
    """An average velocity between two times."""

    def forward(self, x: Tensor, t: Tensor, h: Tensor) -> Tensor:  # type: ignore[override]  # one input more
        scale, shift = (self.time(embedded(t, 8).to(x.dtype)) - self.time(embedded(h, 8).to(x.dtype)))[
            :, :, None, None
        ].chunk(2, dim=1)
        y: Tensor = self.last((self.norm(self.first(x)) * (1 + scale) + shift).tanh())
        return y


class WithVariance(Timed):
    """Twice the channels, and a table that is looked up by a whole time."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(1000, CHANNELS)
        self.variance = nn.Conv2d(CHANNELS, CHANNELS, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        y = super().forward(x, t.float() / 1000) + self.table(t)[:, :, None, None]
        return torch.cat([y, self.variance(x)], dim=1)


def captured(module: nn.Module, batch: int = 3, *, dtype: torch.dtype = DTYPE, seed: int = 5) -> Program:
    """The network with random parameters, its batch free (and the text's length); traced once per kind."""
    randomise(module, seed)
    module.to(dtype).eval()
    key = (type(module), batch, dtype, seed)
    if key not in _CAPTURED:
        _CAPTURED[key] = _captured(module, batch, dtype)
    return _CAPTURED[key].copy()


_CAPTURED: dict[tuple[type[nn.Module], int, torch.dtype, int], Program] = {}


def _captured(module: nn.Module, batch: int, dtype: torch.dtype) -> Program:
    x = torch.randn(batch, CHANNELS, SIZE, SIZE, dtype=dtype)
    t = torch.full((batch,), 0.5, dtype=dtype)
    inputs: dict[str, Any] = {"x": x, "t": t}
    if isinstance(module, Labelled):
        inputs["label"] = torch.zeros(batch, dtype=torch.int64)
    if isinstance(module, Prompted):
        inputs |= {"text": torch.randn(batch, 5, TEXT, dtype=dtype), "place": torch.randn(SIZE, SIZE, dtype=dtype)}
        inputs |= {"spare": torch.randn(batch, 2, dtype=dtype)}
    if isinstance(module, Averaged):
        inputs["h"] = t
    if isinstance(module, WithVariance):
        inputs["t"] = torch.full((batch,), 500)
    dynamic = {name: {0: "batch"} for name in inputs if name != "place"}
    dynamic |= {"text": {0: "batch", 1: "length"}} if "text" in inputs else {}
    dims = {"batch": (1, 16)} | ({"length": (1, 9)} if "text" in inputs else {})
    return capture(module, (), inputs, dynamic=dynamic, dims=dims)


Predict = Callable[[Tensor, tuple[float, ...]], Tensor]


def by_hand(spec: SamplerSpec, predict: Predict, noise: Tensor, draws: Sequence[Tensor] = ()) -> Tensor:
    """The sample, by the table alone."""
    outputs: list[Tensor] = []
    count = spec.evaluations
    for number in range(count + 1):
        row = spec.table[number]
        x = noise * row[0]
        for k, output in enumerate(outputs):
            x = x + output * row[1 + k]
        for k, draw in enumerate(draws):
            x = x + draw * row[1 + count + k]
        if number < count:
            outputs.append(predict(x, spec.times[number]))
    return x


def relative(found: Tensor, expected: Tensor) -> float:
    """The largest difference in parts of the largest number."""
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())


def times_of(
    values: Mapping[str, Tensor], names: Sequence[str], times: tuple[float, ...], like: Tensor
) -> dict[str, Tensor]:
    """Inputs with the times filled in, one per sample."""
    return {**values, **{n: torch.full((len(like),), t) for n, t in zip(names, times, strict=True)}}
