from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from flowopt.rewrite import Budget
from flowopt.verification.classes.budget_measures import Measure, measures
from flowopt.verification.gates import compare
from flowopt.verification.output_evidence import OutputEvidence, scattered


def measured(budget: Budget, known: OutputEvidence, found: Tensor, naive: Tensor | None = None) -> Iterator[Measure]:
    figures = compare("output", "case", known, found, None).figures
    assert figures is not None
    yield from measures(budget, figures, known, found, naive)


class TestMeasures:
    def test_relative_errors_are_those_of_their_own_row(self) -> None:
        oracle = torch.tensor([[1000.0, 1.0], [1.0, 0.5]], dtype=torch.float64)
        known = scattered(oracle, oracle.float(), ())
        (small,) = measured(Budget(max_relative=0.01), known, (oracle + torch.tensor([[0.5], [0.0]])).float())
        assert small.value == pytest.approx(5e-4) and not small.is_over
        (large,) = measured(Budget(max_relative=0.01), known, (oracle + torch.tensor([[0.0], [0.5]])).float())
        assert large.value == pytest.approx(0.5) and large.is_over

    def test_an_error_in_a_row_of_zeros_is_over_any_share(self) -> None:
        oracle = torch.zeros(2, 3, dtype=torch.float64)
        known = scattered(oracle, oracle.float(), ())
        (exact,) = measured(Budget(max_relative=0.01), known, oracle.float())
        (wrong,) = measured(Budget(max_relative=0.01), known, oracle.float() + 1e-6)
        assert not exact.is_over and wrong.is_over

    def test_a_naive_cast_that_overflows_allows_any_finite_error(self) -> None:
        oracle = torch.full((2, 3), 1e5, dtype=torch.float64)
        known = scattered(oracle, oracle.float(), ())
        (found,) = measured(Budget(cast=torch.float16), known, oracle.float() * 1.1, oracle.half())
        assert not found.is_over

    def test_an_exact_naive_cast_allows_no_error(self) -> None:
        oracle = torch.ones(2, 3, dtype=torch.float64)
        known = scattered(oracle, oracle.float(), ())
        (found,) = measured(Budget(cast=torch.float16), known, oracle.float() * 1.01, oracle.half())
        assert found.is_over

    def test_complex_values_are_measured_as_pairs(self) -> None:
        oracle = torch.tensor([[3 + 4j, 1j]], dtype=torch.complex128)
        known = scattered(oracle, oracle.to(torch.complex64), ())
        budget = Budget(max_relative=0.1, min_agreement=0.9)
        (found,) = measured(budget, known, (oracle + 1j).to(torch.complex64))
        assert found.limit == "max_relative" and found.value == pytest.approx(1.0)


class TestDecisions:
    def test_a_cast_may_change_twice_as_many_as_the_naive_one(self) -> None:
        oracle = torch.arange(8)
        known = scattered(oracle, oracle, ())

        def wrong(count: int) -> Tensor:
            return torch.where(oracle < count, -1, oracle)

        for count, is_over in ((4, False), (5, True)):
            (measure,) = measured(Budget(cast=torch.float16), known, wrong(count), wrong(2))
            assert measure.is_over is is_over, str(measure)

    def test_decisions_that_rounding_may_turn_do_not_count(self) -> None:
        oracle = torch.arange(8)
        known = OutputEvidence(oracle, oracle, None, oracle == 3)
        (free,) = measured(Budget(min_snr_db=40.0), known, torch.where(oracle == 3, 0, oracle))
        (bound,) = measured(Budget(min_snr_db=40.0), known, torch.where(oracle == 4, 0, oracle))
        assert not free.is_over and bound.is_over


def test_what_is_no_number_is_over_every_limit() -> None:
    assert Measure("min_snr_db", "ratio", float("nan"), 40.0, True, "{:g}").is_over
    assert Measure("max_relative", "error", float("nan"), 0.1, False, "{:g}").is_over
