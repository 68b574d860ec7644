import itertools
import time
from collections.abc import Callable

import pytest

from flowopt.measuring.attention_crossover import LINEAR, SOFTMAX, Crossover, measured_crossover

LENGTHS = (256, 512, 1024, 2048, 4096)


def powers(softmax: float, linear: float, lengths: tuple[int, ...] = LENGTHS) -> Crossover:
    """Softmax goes with the square of the length, the stand-in with the length."""
    return Crossover(lengths, tuple(softmax * n**2 for n in lengths), tuple(linear * n for n in lengths))


def test_the_crossover_of_powers_is_where_they_meet() -> None:
    # Logarithms and an exponential in float64.
    assert powers(1e-6, 7e-4).length == pytest.approx(700.0, rel=1e-9)


def test_a_stand_in_that_is_faster_everywhere_crosses_at_the_first_length() -> None:
    assert powers(1e-6, 1e-5).length == 256


@pytest.mark.parametrize("linear", [1e-1, 4096e-6], ids=["slower everywhere", "as fast at the last"])
def test_a_stand_in_that_is_not_faster_at_the_last_length_has_no_crossover(linear: float) -> None:
    assert powers(1e-6, linear).length is None


def test_it_is_the_last_of_several_crossings() -> None:
    found = Crossover((1, 2, 4, 8), (1.0, 2.0, 4.0, 8.0), (0.5, 4.0, 8.0, 4.0))
    assert found.length == pytest.approx(32**0.5)


@pytest.mark.parametrize("length", [64, 256, 700, 1024, 4096, 16_384])
def test_times_between_and_beyond_are_powers_of_the_length(length: int) -> None:
    found = powers(1e-6, 7e-4).milliseconds(length)
    assert (found.softmax, found.linear) == pytest.approx((1e-6 * length**2, 7e-4 * length), rel=1e-9)
    assert found.is_extrapolated == (length < 256 or length > 4096)


def test_times_at_a_length_that_was_timed_are_those() -> None:
    found = Crossover((256, 512, 1024), (1.0, 5.0, 9.0), (2.0, 3.0, 7.0)).milliseconds(512)
    assert (found.softmax, found.linear) == pytest.approx((5.0, 3.0))
    assert not found.is_extrapolated


def test_beyond_the_lengths_that_were_timed_no_power_is_one_that_attention_cannot_have() -> None:
    found = Crossover((256, 512), (1.0, 64.0), (8.0, 1.0))
    above, below = found.milliseconds(1024), found.milliseconds(128)
    # 64 times in one doubling is a disturbance: quadratic at most, linear at least; below no slower than at the first.
    assert (above.softmax, above.linear) == pytest.approx((256.0, 2.0))
    assert (below.softmax, below.linear) == pytest.approx((0.25, 8.0))


class Clock:
    """Time that passes only while something is called."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[tuple[str, int]] = []

    def runs(self, name: str, power: int, seconds: float) -> Callable[[int], Callable[[], None]]:
        def made(length: int) -> Callable[[], None]:
            def call() -> None:
                self.now += seconds * length**power
                self.calls.append((name, length))

            return call

        return made


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(time, "perf_counter", lambda: found.now)
    monkeypatch.setattr(time, "monotonic", lambda: found.now)
    return found


def measured(clock: Clock, *, budget: float, lengths: tuple[int, ...] = LENGTHS) -> Crossover:
    runs = {SOFTMAX: clock.runs(SOFTMAX, 2, 1e-8), LINEAR: clock.runs(LINEAR, 1, 7e-6)}
    return measured_crossover(runs, lengths, budget_seconds=budget)


def test_every_length_is_timed_by_turns(clock: Clock) -> None:
    found = measured(clock, budget=60.0)
    assert found.lengths == LENGTHS
    assert found.softmax_ms == pytest.approx([1e-5 * n**2 for n in LENGTHS])
    assert found.linear_ms == pytest.approx([7e-3 * n for n in LENGTHS])
    assert found.length == pytest.approx(700.0)
    turns = [name for (name, length), _ in itertools.groupby(clock.calls) if length == 256]
    # Five bursts of each; rounds that turn let one of them run twice in a row.
    assert turns.count(SOFTMAX) >= 3 and turns.count(LINEAR) >= 3


def test_lengths_beyond_the_budget_are_left_out_but_never_the_first_two(clock: Clock) -> None:
    assert measured(clock, budget=0.0).lengths == (256, 512)
    clock.now = 0.0
    found = measured(clock, budget=3.0)
    assert 2 < len(found.lengths) < len(LENGTHS)
    assert clock.now <= 3.0


def test_the_best_call_counts(clock: Clock) -> None:
    slow = iter([9.0, 0.5, 7.0, 3.0, 2.0])

    def disturbed(length: int) -> Callable[[], None]:
        def call() -> None:
            clock.now += next(slow) * (2.0 if length == 2 else 1.0)

        return call

    runs = {SOFTMAX: disturbed, LINEAR: clock.runs(LINEAR, 1, 1.0)}
    with pytest.raises(StopIteration):
        # Five calls of the first length, and none is left for the second.
        measured_crossover(runs, (1, 2), budget_seconds=60.0)
    slow = iter([9.0, 0.5, 7.0, 3.0, 2.0] * 2)
    assert measured_crossover(runs, (1, 2), budget_seconds=60.0).softmax_ms == pytest.approx((500.0, 1000.0))


def test_lengths_are_timed_once_each_and_rising(clock: Clock) -> None:
    assert measured(clock, budget=60.0, lengths=(512, 256, 512)).lengths == (256, 512)
