from collections.abc import Callable

import pytest

from flowopt.measuring import bursts
from flowopt.measuring.bursts import burst


class Clock:
    """Time passes only while the model runs."""

    def __init__(self) -> None:
        self.now, self.calls = 0.0, 0

    def perf_counter(self) -> float:
        return self.now

    def model(self, seconds: Callable[[int], float]) -> Callable[[], None]:
        def run() -> None:
            self.now += seconds(self.calls)
            self.calls += 1

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(bursts, "time", made)
    return made


def test_the_first_calls_of_a_fast_model_are_not_counted(clock: Clock) -> None:
    found = burst(clock.model(lambda at: 0.1 if at == 0 else 0.001), 0.05)
    assert found == pytest.approx([0.001] * 50)
    assert clock.calls == 3 + 50


def test_warming_takes_some_milliseconds_of_a_very_fast_model(clock: Clock) -> None:
    found = burst(clock.model(lambda at: 0.0001), 0.01)
    assert clock.calls - len(found) == pytest.approx(200, abs=1)


def test_a_slow_model_is_counted_from_its_first_call_on(clock: Clock) -> None:
    assert burst(clock.model(lambda at: 1.0), 0.1) == [1.0]
    assert clock.calls == 1


def test_a_slow_model_is_called_as_often_as_the_time_allows(clock: Clock) -> None:
    assert burst(clock.model(lambda at: 0.5), 2.0) == pytest.approx([0.5] * 5)


def test_a_fast_model_is_called_three_times_at_least(clock: Clock) -> None:
    assert len(burst(clock.model(lambda at: 0.15), 0.001)) == 3
