"""Tables that cannot be samplers are refused, each with its reason."""

import numpy
import pytest

from flowopt.errors import UserError
from flowopt.sampling import SamplerSpec, Trace


def refusal(**changes: object) -> str:
    table = numpy.array([[1.0, 0, 0], [1, 0.5, 0], [1, 0.5, 0.5]])
    arguments: dict = {"name": "mine", "times": ((0.0,), (0.5,)), "table": table} | changes
    with pytest.raises(UserError) as caught:
        SamplerSpec(**arguments)
    return str(caught.value)


def test_no_evaluation() -> None:
    assert "0 times" in refusal(times=(), table=numpy.ones((1, 1)))


def test_a_table_of_another_size() -> None:
    assert "need [3, 4]" in refusal(draws=1)


def test_numbers_that_are_not_finite() -> None:
    assert "not finite" in refusal(times=((0.0,), (numpy.inf,)))


def test_an_output_that_does_not_exist_yet() -> None:
    assert "output 1 at evaluation 0" in refusal(table=numpy.array([[1.0, 0, 2], [1, 0.5, 0], [1, 0.5, 0.5]]))


def test_one_time_here_and_two_there() -> None:
    assert "two at others" in refusal(times=((0.0,), (0.5, 0.1)))


def test_arithmetic_is_recorded() -> None:
    trace = Trace()
    first = trace.evaluate(trace.start / 2, 0.0)
    second = trace.evaluate(-first + trace.start, 0.5)
    spec = trace.finished("mine", 3 * second - first * 0.5 + trace.draw())
    assert spec.table.tolist() == [[0.5, 0, 0, 0], [1, -1, 0, 0], [0, -0.5, 3, 1]]
    assert spec.times == ((0.0,), (0.5,))
    assert spec.draws == 1


def test_the_table_is_not_changed_afterwards() -> None:
    trace = Trace()
    spec = trace.finished("mine", trace.evaluate(trace.start, 0.0))
    with pytest.raises(ValueError, match="read-only"):
        spec.table[0, 0] = 2.0
