"""A report as it lies in a file: what is compared and shown of it, out of JSON values that anybody may have written."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from flowopt.errors import MalformedModel
from flowopt.report.report import SCHEMA_VERSION

_WORDS: Final = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}


@dataclass(frozen=True, slots=True)
class StoredPass:
    """One pass: sites where it fired, and the codes of those where it did not, by site."""

    name: str
    outcome: str
    reason: str
    applied: tuple[str, ...]
    refused: Mapping[str, str]

    @property
    def bare_name(self) -> str:
        """Its name without options."""
        return self.name.split(":")[0]

    @property
    def kept(self) -> tuple[str, ...]:
        """Sites that it changed for good."""
        return self.applied if self.outcome == "kept" else ()


@dataclass(frozen=True, slots=True)
class StoredFigure:
    """The error gate's ratio of one output in one case, at most 1 where it passed."""

    output: str
    case: str
    ratio: float


@dataclass(frozen=True, slots=True)
class StoredVerdict:
    """A verdict on the lowered file at one optimisation level of its runtime."""

    level: str
    outcome: str
    figures: tuple[StoredFigure, ...]

    @property
    def worst_ratio(self) -> float:
        """Largest of all ratios; 0.0 without figures."""
        return max((figure.ratio for figure in self.figures), default=0.0)


@dataclass(frozen=True, slots=True)
class StoredLoop:
    """The loop of a folded sampler; attributes as in ``LoopRecord``."""

    sampler: str
    evaluations: int
    state: int
    form: str


@dataclass(frozen=True, slots=True)
class StoredReport:
    """A report of this version of the schema; attributes as in ``Report``.

    Attributes:
        runtime_level: optimisation level that the artifact runs at; empty where there is none.
        loop: of a folded sampler; None for other models.
    """

    outcome: str
    target: str
    source: str
    pipeline: str
    passes: tuple[StoredPass, ...]
    census_after: Mapping[str, int]
    census_lowered: Mapping[str, int]
    parameter_bytes: tuple[int, int]
    lowered: tuple[StoredVerdict, ...]
    runtime_level: str
    interface: Mapping[str, Any]
    warnings: tuple[str, ...]
    versions: Mapping[str, str]
    loop: StoredLoop | None = None


def stored_report(value: object, *, what: str) -> StoredReport:
    """A report out of its JSON values.

    Args:
        value: the parsed file.
        what: names it in messages.

    Raises:
        MalformedModel: no report, one of another version of the schema, or a value of another kind.
    """
    root = _Value(value, what)
    root.mapping()
    version = root["schema_version"].value
    if version != SCHEMA_VERSION:
        raise MalformedModel(
            f"{what} is no report of this version of flowopt",
            why=f"schema_version is {version!r}, not {SCHEMA_VERSION}"
            if version is not None
            else "it has no schema_version",
            hint="write a new one: flowopt optimize leaves report.json in the artifact's folder",
        )
    before, after = root["parameter_bytes"].items(exactly=2)
    return StoredReport(
        outcome=root["outcome"].text(),
        target=root["target"].text(),
        source=root["source"].text(),
        pipeline=root["pipeline"].text(default=""),
        passes=tuple(_pass(one) for one in root["passes"].items()),
        census_after=root["census_after"].counts(),
        census_lowered=root["census_lowered"].counts(),
        parameter_bytes=(before.integer(), after.integer()),
        lowered=tuple(_verdict(one) for one in root["lowered"].items()),
        runtime_level=root["runtime"]["level"].text(default=""),
        interface=root["interface"].mapping(),
        warnings=tuple(one.text() for one in root["warnings"].items()),
        versions={name: root["versions"][name].text() for name in root["versions"].mapping()},
        loop=None if root["loop"].value is None else _loop(root["loop"]),
    )


def _loop(one: "_Value") -> StoredLoop:
    return StoredLoop(one["sampler"].text(), one["evaluations"].integer(), one["state"].integer(), one["form"].text())


def _pass(one: "_Value") -> StoredPass:
    return StoredPass(
        name=one["name"].text(),
        outcome=one["outcome"].text(),
        reason=one["reason"].text(),
        applied=tuple(site["site"].text() for site in one["applied"].items()),
        refused={site["site"].text(): site["code"].text() for site in one["refused"].items()},
    )


def _verdict(one: "_Value") -> StoredVerdict:
    verdict = one["verdict"]
    figures = (
        StoredFigure(f["output"].text(), f["case"].text(), f["ratio"].number()) for f in verdict["figures"].items()
    )
    return StoredVerdict(one["level"].text(), verdict["outcome"].text(), tuple(figures))


@dataclass(frozen=True, slots=True)
class _Value:
    """A JSON value and where it stands; absent ones are None."""

    value: object
    place: str

    def __getitem__(self, key: str) -> Self:
        return type(self)(self.mapping().get(key), f"{self.place}: {key}")

    def mapping(self) -> Mapping[str, Any]:
        if not isinstance(self.value, dict):
            raise self._other("an object")
        return self.value

    def items(self, *, exactly: int | None = None) -> list[Self]:
        if not isinstance(self.value, list) or exactly not in (None, len(self.value)):
            raise self._other("a list" if exactly is None else f"a list of {exactly}")
        return [type(self)(one, f"{self.place}[{at}]") for at, one in enumerate(self.value)]

    def text(self, *, default: str | None = None) -> str:
        if self.value is None and default is not None:
            return default
        if not isinstance(self.value, str):
            raise self._other("a text")
        return self.value

    def integer(self) -> int:
        if not isinstance(self.value, int) or isinstance(self.value, bool):
            raise self._other("a whole number")
        return self.value

    def number(self) -> float:
        """A number, or one of the three words that JSON has no number for."""
        if isinstance(self.value, str) and self.value in _WORDS:
            return _WORDS[self.value]
        if not isinstance(self.value, (int, float)) or isinstance(self.value, bool):
            raise self._other("a number")
        return float(self.value)

    def counts(self) -> dict[str, int]:
        return {key: self[key].integer() for key in self.mapping()}

    def _other(self, wanted: str) -> MalformedModel:
        return MalformedModel(
            f"{self.place} is {type(self.value).__name__}, not {wanted}",
            why="flowopt writes no such report",
            hint="write a new one: flowopt optimize leaves report.json in the artifact's folder",
        )
