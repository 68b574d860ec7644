"""Every gate fires, and does not fire, on tensors written by hand."""

import math

import pytest
import torch
from torch import Tensor

from flowopt.verification.classes.bits import compare_bits
from flowopt.verification.gates import Comparison, compare
from flowopt.verification.limits import MODEL_LIMITS, SITE_LIMITS
from flowopt.verification.output_evidence import OutputEvidence, scattered
from flowopt.verification.twin_gate import TWIN_TOLERANCE

ULP = 2.0**-23


def rows() -> Tensor:
    """Four rows of 64, all in (1, 2), so that an ulp is the same everywhere."""
    return (1.25 + 0.5 * torch.rand(4, 64, generator=torch.Generator().manual_seed(0))).float()


def evidence(oracle: Tensor | None = None, original: Tensor | None = None, own: float = ULP) -> OutputEvidence:
    """An original that is off by one ulp in the first element of every row."""
    oracle = rows().double() if oracle is None else oracle
    original = oracle.float() if original is None else original
    error = torch.zeros_like(oracle)
    error[..., 0] = own
    return OutputEvidence(oracle, original, error)


def gates_of(result: Comparison) -> list[str]:
    return [f.gate for f in result.findings]


def judged(candidate: Tensor, known: OutputEvidence, twin: Tensor | None = None) -> Comparison:
    return compare("y", "traced", known, candidate, known.oracle if twin is None else twin)


def test_the_original_itself_passes_every_gate() -> None:
    known = evidence()
    result = judged(known.original, known)
    assert result.findings == ()
    assert result.figures is not None
    assert result.figures.ratio < 1 and result.figures.twin_error == 0.0 and result.figures.ignored == 0


class TestStructure:
    @pytest.mark.parametrize("shape", [(64,), (1, 64), (4, 64, 1), (4, 63)])
    def test_another_shape(self, shape: tuple[int, ...]) -> None:
        # A row or a column would broadcast silently.
        result = judged(torch.ones(shape), evidence())
        assert gates_of(result) == ["structure"]
        assert str(list(shape)) in result.findings[0].message and "[4, 64]" in result.findings[0].message

    def test_another_dtype(self) -> None:
        known = evidence()
        assert gates_of(judged(known.original.double(), known)) == ["structure"]
        assert gates_of(judged(known.original.half(), known)) == ["structure"]


class TestTwin:
    def test_a_systematic_difference_of_one_in_a_billion(self) -> None:
        known = evidence()
        assert gates_of(judged(known.original, known, known.oracle * (1 + 2e-9))) == ["twin"]
        assert judged(known.original, known, known.oracle * (1 + 1e-12)).findings == ()

    def test_one_element_is_enough(self) -> None:
        known = evidence()
        twin = known.oracle.clone()
        twin[2, 17] += 1e-8
        assert gates_of(judged(known.original, known, twin)) == ["twin"]

    def test_the_scale_is_that_of_the_row(self) -> None:
        oracle = rows().double()
        oracle[1] *= 1e-6
        twin = oracle.clone()
        twin[1, 5] += 1e-12  # a millionth of the row, nothing to its neighbours
        known = evidence(oracle, own=1e-13)
        assert gates_of(judged(known.original, known, twin)) == ["twin"]

    def test_digits_that_the_original_lost_are_not_asked_for(self) -> None:
        oracle = torch.zeros(1, 64, dtype=torch.float64)
        twin = torch.full_like(oracle, 1e-16)  # float64's rounding of a difference that cancels
        lost = OutputEvidence(oracle, oracle.float(), torch.full_like(oracle, ULP))
        assert judged(lost.original, lost, twin).findings == ()
        kept = OutputEvidence(oracle, oracle.float(), torch.zeros_like(oracle))
        assert gates_of(judged(kept.original, kept, twin)) == ["twin"]

    def test_another_shape_of_the_twin(self) -> None:
        known = evidence()
        assert gates_of(judged(known.original, known, known.oracle[:1])) == ["twin"]

    @pytest.mark.parametrize("special", [math.nan, math.inf])
    def test_a_twin_that_is_not_finite_where_the_oracle_is(self, special: float) -> None:
        known = evidence()
        twin = known.oracle.clone()
        twin[0, 0] = special
        assert gates_of(judged(known.original, known, twin)) == ["twin"]

    def test_there_is_none_for_lowered_files(self) -> None:
        known = evidence()
        result = compare("y", "traced", known, known.original, None)
        assert result.findings == () and result.figures is not None and result.figures.twin_error is None

    def test_it_may_have_an_oracle_of_its_own(self) -> None:
        known = evidence()
        other = known.oracle * (1 + 1e-7)  # folds of earlier passes were rounded
        assert compare("y", "c", known, known.original, other, twin_oracle=other).findings == ()


class TestRatio:
    def test_one_bad_element(self) -> None:
        known = evidence()
        for ulps, fires in ((3, False), (7, False), (9, True)):
            candidate = known.original.clone()
            candidate[2, 30] += ulps * ULP
            # Allowed: four times the row's own error of one ulp, and four units of roundoff (half an ulp of 1 each)
            # of a scale just below 2.
            assert gates_of(judged(candidate, known)) == (["ratio"] if fires else []), ulps

    def test_many_small_errors_count_together(self) -> None:
        known = evidence()
        candidate = known.original + 6 * ULP  # no element is too far off, but all are
        result = judged(candidate, known)
        assert gates_of(result) == ["ratio"]

    def test_a_large_own_error_allows_more(self) -> None:
        known = evidence(own=1e-3)
        candidate = known.original.clone()
        candidate[:, 1] += 2.4e-3
        assert judged(candidate, known).findings == ()
        candidate[:, 1] += 2e-3
        assert gates_of(judged(candidate, known)) == ["ratio"]

    def test_the_own_error_of_one_row_does_not_excuse_another(self) -> None:
        known = evidence()
        assert known.own_error is not None
        known.own_error[0] = 1e-3
        candidate = known.original.clone()
        candidate[1, 1] += 1e-4
        assert gates_of(judged(candidate, known)) == ["ratio"]

    def test_rows_of_maps_are_joined_and_others_are_not(self) -> None:
        oracle = torch.ones(2, 3, 2, dtype=torch.float64)
        oracle[0, 0] = 1e6
        candidate = oracle.float()
        candidate[0, 1, 0] += 1e-3
        own = torch.zeros_like(oracle)
        known = OutputEvidence(oracle, oracle.float(), own)
        assert gates_of(judged(candidate, known)) == ["ratio"]
        joined = OutputEvidence(oracle.unsqueeze(-1), oracle.float().unsqueeze(-1), own.unsqueeze(-1))
        assert judged(candidate.unsqueeze(-1), joined).findings == ()

    def test_sites_allow_three_times_as_much(self) -> None:
        known = evidence(own=1e-3)
        candidate = known.original.clone()
        candidate[0, 1] += 6e-3
        assert gates_of(compare("y", "c", known, candidate, None, limits=MODEL_LIMITS)) == ["ratio"]
        assert compare("y", "c", known, candidate, None, limits=SITE_LIMITS).findings == ()
        candidate[0, 1] += 7e-3
        assert gates_of(compare("y", "c", known, candidate, None, limits=SITE_LIMITS)) == ["ratio"]

    def test_zero_rows_must_stay_zero(self) -> None:
        oracle = torch.zeros(2, 64, dtype=torch.float64)
        known = OutputEvidence(oracle, oracle.float(), torch.zeros_like(oracle))
        assert judged(known.original, known).findings == ()
        assert gates_of(judged(known.original + 1e-30, known)) == ["ratio"]

    def test_power_is_the_smallest_change_that_is_seen(self) -> None:
        known = evidence()
        figures = compare("y", "traced", known, known.original, None).figures
        assert figures is not None
        seen, unseen = known.original.clone(), known.original.clone()
        seen[0, 5] += 1.1 * figures.power * 2
        unseen[0, 5] += 0.4 * figures.power * 2
        assert gates_of(judged(seen, known)) == ["ratio"]
        assert judged(unseen, known).findings == ()

    def test_power_with_a_twin_is_the_twins(self) -> None:
        known = evidence()
        figures = judged(known.original, known).figures
        assert figures is not None
        seen, unseen = known.oracle.clone(), known.oracle.clone()
        scale = float(known.oracle[0].abs().max())
        seen[0, 5] += 2 * figures.power * scale
        unseen[0, 5] += 0.5 * figures.power * scale
        assert gates_of(judged(known.original, known, seen)) == ["twin"]
        assert judged(known.original, known, unseen).findings == ()

    def test_power_is_infinite_where_nothing_is_in_scope(self) -> None:
        nothing = torch.full((2, 4), float("nan"))
        known = scattered(nothing.double(), nothing, ())
        figures = judged(nothing, known).figures
        assert figures is not None and figures.power == float("inf")

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_other_precisions_have_their_own_floor(self, dtype: torch.dtype) -> None:
        oracle = rows().to(dtype).double()
        known = OutputEvidence(oracle, oracle.to(dtype), torch.zeros_like(oracle))
        ulp = float(torch.finfo(dtype).eps)
        near, far = known.original.clone(), known.original.clone()
        near[0, 0] += ulp
        far[0, 0] += 8 * ulp
        assert judged(near, known).findings == ()
        assert gates_of(judged(far, known)) == ["ratio"]

    def test_complex_numbers_are_compared_by_their_parts(self) -> None:
        oracle = torch.complex(rows().double(), rows().double())
        known = scattered(oracle, oracle.to(torch.complex64), [])
        assert judged(known.original, known).findings == ()
        candidate = known.original.clone()
        candidate[0, 0] += 1e-3j
        assert gates_of(judged(candidate, known, oracle)) == ["ratio"]
        assert gates_of(judged(known.original, known, oracle + 1e-6j)) == ["twin"]


class TestSpecials:
    @pytest.mark.parametrize("special", [math.nan, math.inf, -math.inf])
    def test_a_special_that_became_finite_is_swallowed(self, special: float) -> None:
        oracle = rows().double()
        oracle[0, 3] = special
        known = evidence(oracle)
        candidate = known.original.clone()
        candidate[0, 3] = 0.0
        result = judged(candidate, known)
        assert gates_of(result) == ["specials"]
        assert "swallowed: 1" in result.findings[0].message

    @pytest.mark.parametrize("special", [math.nan, math.inf])
    def test_a_finite_value_that_became_special_is_introduced(self, special: float) -> None:
        known = evidence()
        candidate = known.original.clone()
        candidate[0, 3] = special
        result = judged(candidate, known)
        assert gates_of(result) == ["specials"]
        assert "introduced: 1" in result.findings[0].message

    @pytest.mark.parametrize(("before", "after"), [(math.nan, math.inf), (math.inf, math.nan), (math.inf, -math.inf)])
    def test_one_special_for_another_is_counted_and_ignored(self, before: float, after: float) -> None:
        oracle = rows().double()
        oracle[0, 3] = before
        known = evidence(oracle)
        candidate = known.original.clone()
        candidate[0, 3] = after
        result = judged(candidate, known)
        assert result.findings == ()
        assert result.figures is not None and result.figures.ignored == 1

    def test_an_overflow_that_the_rewrite_avoids_is_no_fault(self) -> None:
        oracle = rows().double()
        oracle[0, 3] = 1e39
        known = evidence(oracle)
        assert bool(torch.isinf(known.original[0, 3]))
        candidate = known.original.clone()
        candidate[0, 3] = 3e38
        assert judged(candidate, known).findings == ()

    def test_a_special_does_not_hide_an_error_elsewhere(self) -> None:
        oracle = rows().double()
        oracle[0, 3] = math.nan
        known = evidence(oracle)
        candidate = known.original.clone()
        candidate[0, 4] += 1e-3
        assert gates_of(judged(candidate, known)) == ["ratio"]


class TestDiscrete:
    def test_equal_decisions_pass(self) -> None:
        value = torch.tensor([[1, 2], [3, 4]])
        known = scattered(value, value, [value])
        assert judged(value.clone(), known).findings == ()

    @pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8])
    def test_another_decision_fails(self, dtype: torch.dtype) -> None:
        value = torch.tensor([1, 0, 1]).to(dtype)
        known = scattered(value, value, [value])
        result = judged(torch.tensor([1, 1, 1]).to(dtype), known)
        assert gates_of(result) == ["discrete"]
        assert "1 of 3" in result.findings[0].message

    def test_where_the_original_wavers_either_is_right_and_is_counted(self) -> None:
        value = torch.tensor([1, 2, 3])
        known = scattered(value, value, [torch.tensor([1, 9, 3])])
        result = judged(torch.tensor([1, 7, 3]), known)
        assert result.findings == ()
        assert result.figures is not None and result.figures.undecided == 1
        assert gates_of(judged(torch.tensor([0, 2, 3]), known)) == ["discrete"]

    def test_where_float64_decides_otherwise_either_is_right(self) -> None:
        known = scattered(torch.tensor([1, 5]), torch.tensor([1, 2]), [])
        assert judged(torch.tensor([1, 5]), known).findings == ()
        assert judged(torch.tensor([1, 2]), known).findings == ()


class TestBits:
    def test_equal_bits_pass(self) -> None:
        value = torch.tensor([0.0, -0.0, math.nan, math.inf, 1.5])
        assert list(compare_bits("y", "c", value, value.clone())) == []

    @pytest.mark.parametrize(
        ("before", "after"),
        [(0.0, -0.0), (1.0, 1.0 + ULP), (math.nan, 0.0), (0.0, math.nan), (math.inf, -math.inf), (math.inf, math.nan)],
    )
    def test_any_other_bit_fails(self, before: float, after: float) -> None:
        (finding,) = compare_bits("y", "c", torch.tensor([1.0, before]), torch.tensor([1.0, after]))
        assert finding.gate == "bits" and "1 of 2" in finding.message

    def test_integers_and_complex_numbers(self) -> None:
        assert list(compare_bits("y", "c", torch.tensor([1, 2]), torch.tensor([1, 3])))
        assert list(compare_bits("y", "c", torch.tensor([1 + 2j]), torch.tensor([1 - 2j])))
        assert not list(compare_bits("y", "c", torch.tensor([1 + 2j]), torch.tensor([1 + 2j])))


def test_empty_outputs_pass() -> None:
    known = scattered(torch.zeros(0, 4, dtype=torch.float64), torch.zeros(0, 4), [torch.zeros(0, 4)])
    assert judged(torch.zeros(0, 4), known).findings == ()


def test_scalars_are_one_row() -> None:
    known = scattered(torch.tensor(2.0, dtype=torch.float64), torch.tensor(2.0), [torch.tensor(2.0 + ULP)])
    assert judged(torch.tensor(2.0 + 2 * ULP), known).findings == ()
    assert gates_of(judged(torch.tensor(2.001), known)) == ["ratio"]


def test_the_tolerance_of_the_twin_is_the_designs() -> None:
    assert TWIN_TOLERANCE == 1e-9


def test_the_message_tells_of_the_row_that_is_worst() -> None:
    """A row of tiny numbers that lost all its digits, beside one that is fine and whose errors are far larger."""
    oracle = rows().double()
    oracle[2] *= 1e-6
    known = evidence(oracle, own=1e-13)
    candidate = known.original.clone()
    candidate[0, 3] += 4e-7
    candidate[2, 3] += 3e-8
    (finding,) = compare("y", "traced", known, candidate, None).findings
    assert finding.gate == "ratio"
    assert "error 3.00e-08 against float64 in a row of scale 1." in finding.message
    assert "e-06 is " in finding.message and "own there is 1.00e-13" in finding.message


def test_a_ratio_of_many_digits_is_written_short() -> None:
    known = evidence(torch.zeros(4, 64, dtype=torch.float64), own=0.0)
    (finding,) = compare("y", "traced", known, known.original + 1.0, None).findings
    assert len(finding.message) < 150
