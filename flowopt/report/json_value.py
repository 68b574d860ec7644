"""A value of a report's JSON, which anybody may have written, as what it has to be."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from flowopt.errors import MalformedModel

_WORDS: Final = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}


@dataclass(frozen=True, slots=True)
class JsonValue:
    """A JSON value and where it stands in the report; absent ones are None. What is of another kind is refused."""

    value: object
    place: str

    def __getitem__(self, key: str) -> Self:
        return type(self)(self.mapping().get(key), f"{self.place}: {key}")

    def mapping(self) -> Mapping[str, Any]:
        if not isinstance(self.value, dict):
            raise self._other("an object")
        return self.value

    def items(self, *, exactly: int | None = None, at_least: int = 0) -> list[Self]:
        if not isinstance(self.value, list) or exactly not in (None, len(self.value)) or len(self.value) < at_least:
            count = f" of {exactly}" if exactly is not None else f" of {at_least} or more" if at_least else ""
            raise self._other(f"a list{count}")
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

    def number_or_none(self) -> float | None:
        return None if self.value is None else self.number()

    def counts(self) -> dict[str, int]:
        return {key: self[key].integer() for key in self.mapping()}

    def _other(self, wanted: str) -> MalformedModel:
        return MalformedModel(
            f"{self.place} is {type(self.value).__name__}, not {wanted}",
            why="flowopt writes no such report",
            hint="write a new one: flowopt optimize leaves report.json in the artifact's folder",
        )
