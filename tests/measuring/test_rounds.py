import itertools
import time
from collections.abc import Mapping

import pytest

from flowopt.measuring.process import ContenderFailedError
from flowopt.measuring.rounds import Plan, alternated, until_sure


class Fake:
    """Tells a log that it was asked, and ends after so many bursts."""

    def __init__(self, name: str, log: list[str], times: list[float] | None = None, lasts: int = 10**6) -> None:
        self.name, self.log, self.lasts = name, log, lasts
        self.times = itertools.cycle(times or [1.0])

    def burst(self, seconds: float) -> list[float]:
        if self.lasts == 0:
            raise ContenderFailedError(f"{self.name} ended")
        self.lasts -= 1
        self.log.append(self.name)
        return [next(self.times)]


def fakes(log: list[str], **options: Mapping[str, object]) -> dict[str, Fake]:
    return {name: Fake(name, log, **given) for name, given in options.items()}  # type: ignore[arg-type]  # of a test


def test_the_order_turns_and_every_other_round_runs_backwards() -> None:
    log: list[str] = []
    found = alternated(fakes(log, a={}, b={}, c={}), 4, 0.1, {})
    assert ["".join(log[at : at + 3]) for at in range(0, 12, 3)] == ["abc", "acb", "cab", "cba"]
    assert {name: len(bursts) for name, bursts in found.items()} == {"a": 4, "b": 4, "c": 4}


def test_it_ends_at_the_fewest_rounds_when_the_ratio_is_known() -> None:
    found = until_sure(fakes([], a={}, b={}), "a", ["b"], Plan(fewest=5), {})
    assert {len(bursts) for bursts in found.values()} == {5}


def test_it_goes_on_while_the_interval_is_too_wide_and_ends_at_the_most() -> None:
    noisy = {"times": [1.0, 2.0, 4.0]}
    found = until_sure(fakes([], a=noisy, b={}), "a", ["b"], Plan(fewest=5, most=17, width=0.0), {})
    assert {len(bursts) for bursts in found.values()} == {17}


def test_it_ends_when_its_time_is_up_but_not_before_the_fewest_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: next(seconds))
    noisy = {"times": [1.0, 2.0, 4.0]}
    for budget, expected in ((0.5, 5), (3.5, 8)):
        found = until_sure(fakes([], a=noisy, b={}), "a", ["b"], Plan(fewest=5, width=0.0, budget=budget), {})
        assert {len(bursts) for bursts in found.values()} == {expected}


def test_one_that_ends_is_left_out_and_the_others_go_on() -> None:
    lost: dict[str, str] = {}
    found = alternated(fakes([], a={}, b={"lasts": 2}, c={}), 4, 0.1, lost)
    assert lost == {"b": "b ended"}
    assert {name: len(bursts) for name, bursts in found.items()} == {"a": 4, "c": 4}


def test_one_that_ends_while_the_ratio_is_measured_is_left_out() -> None:
    lost: dict[str, str] = {}
    found = until_sure(fakes([], a={}, b={"lasts": 2}, c={}), "a", ["b", "c"], Plan(fewest=5), lost)
    assert lost == {"b": "b ended"}
    assert {name: len(bursts) for name, bursts in found.items()} == {"a": 5, "c": 5}


def test_without_ours_it_ends() -> None:
    lost: dict[str, str] = {}
    found = until_sure(fakes([], a={"lasts": 2}, b={}), "a", ["b"], Plan(fewest=50), lost)
    assert list(lost) == ["a"]
    assert len(found["b"]) <= 3


def test_every_round_is_told() -> None:
    told: list[int] = []
    until_sure(fakes([], a={}), "a", [], Plan(fewest=3), {}, told.append)
    assert told == [0, 1, 2]
