"""What a bench found, cell by cell, as JSON and Markdown show it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one call: median, and the quartiles of the rounds' medians.

    ``calls`` counts what was timed, in ``rounds`` bursts.
    """

    median: float
    low: float
    high: float
    rounds: int
    calls: int


@dataclass(frozen=True, slots=True)
class Ratio:
    """Time of one contender over another's: the median over rounds, and its 95 % interval."""

    value: float
    low: float
    high: float
    rounds: int

    @property
    def width(self) -> float:
        """Of the interval."""
        return self.high - self.low


@dataclass(frozen=True, slots=True)
class Peaks:
    """What the machine gives at the model's own shapes, and what the model asks for.

    Attributes:
        flop: floating point operations of the matrix products and convolutions of one run.
        moved_bytes: their operands and results, each moved once.
        flop_per_second: of the same products alone, each at its own shape, by torch.
        bytes_per_second: of a large copy, read and written.
    """

    flop: int
    moved_bytes: int
    flop_per_second: float
    bytes_per_second: float


@dataclass(frozen=True, slots=True)
class BenchCell:
    """One model at one set of sizes.

    Attributes:
        model: its name.
        sizes: of every free dimension.
        ours: name of the contender that the ratios are of.
        scouted: every contender's time, in the run that chose the competitors.
        measured: times in the run that the ratios are from.
        ratios: our time over that of the faster plain export, and of the fastest competitor, by their names.
        plain: the faster of ONNX Runtime's runs of what torch exports; None: none ran.
        best: the fastest competitor; None: none ran.
        failures: why a competitor has no figure.
        differences: largest difference of a competitor's outputs to ours, over the largest output.
        peaks: None: not asked for, or no product has known sizes.
    """

    model: str
    sizes: Mapping[str, int]
    ours: str
    scouted: Mapping[str, Timing]
    measured: Mapping[str, Timing]
    ratios: Mapping[str, Ratio]
    plain: str | None = None
    best: str | None = None
    failures: Mapping[str, str] = field(default_factory=dict)
    differences: Mapping[str, float] = field(default_factory=dict)
    peaks: Peaks | None = None

    @property
    def label(self) -> str:
        """``gpt2 batch=1 sequence=32``."""
        return " ".join([self.model, *(f"{name}={size}" for name, size in self.sizes.items())])

    @staticmethod
    def of(told: Mapping[str, Any]) -> "BenchCell":
        """Out of what ``to_json`` wrote of one."""
        return BenchCell(
            **dict(told)
            | {name: {n: Timing(**t) for n, t in told[name].items()} for name in ("scouted", "measured")}
            | {"ratios": {n: Ratio(**r) for n, r in told["ratios"].items()}}
            | {"peaks": None if told["peaks"] is None else Peaks(**told["peaks"])}
        )


@dataclass(frozen=True, slots=True)
class BenchReport:
    """All cells of one bench.

    Attributes:
        cells: in the order in which they were measured.
        processor: model name of the processor, as the system tells it.
        threads: of every contender.
        date: of the run, ISO 8601.
        versions: of the runtimes.
        schema_version: of this form.
    """

    cells: tuple[BenchCell, ...]
    processor: str
    threads: int
    date: str
    versions: Mapping[str, str]
    schema_version: int = 1

    @staticmethod
    def of(told: Mapping[str, Any]) -> "BenchReport":
        """Out of what ``to_json`` wrote of one."""
        return BenchReport(**dict(told) | {"cells": tuple(BenchCell.of(cell) for cell in told["cells"])})
