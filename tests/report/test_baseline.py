"""What counts as worse than a baseline, one thing at a time; what is better, or no worse, is not told."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from flowopt.report.baseline import BYTES_SLACK, RATIO_FACTOR, RATIO_FLOOR, grown_errors, regressions
from flowopt.report.stored import StoredFigure, StoredPass, StoredReport, StoredVerdict


def record(
    name: str, *applied: str, outcome: str = "kept", reason: str = "", refused: Mapping[str, str] | None = None
) -> StoredPass:
    return StoredPass(name, outcome, reason, applied, dict(refused or {}))


def figures(**ratios: float) -> tuple[StoredFigure, ...]:
    return tuple(StoredFigure(output, "traced", ratio) for output, ratio in ratios.items())


BEFORE = StoredReport(
    outcome="verified",
    target="cpu",
    source="m.pt2",
    pipeline="",
    passes=(record("canonicalize-aten", "addmm"), record("fold:min=1", "a", "b", "c"), record("merge", "q")),
    census_after={"aten.add": 4, "aten.mul": 2},
    census_lowered={"Add": 4},
    parameter_bytes=(200_000, 100_000),
    lowered=(StoredVerdict("disabled", "equivalent", figures(y=0.3)),),
    runtime_level="all",
    interface={},
    warnings=("runtime differs by 1.5e-3",),
    versions={},
)


def worse(**changes: Any) -> tuple[str, ...]:
    return regressions(BEFORE, replace(BEFORE, **changes), respelling=["canonicalize-aten"])


def passes(*fold: StoredPass) -> tuple[StoredPass, ...]:
    return (BEFORE.passes[0], *fold, BEFORE.passes[2])


def test_the_same_report_is_no_worse() -> None:
    assert worse() == ()


@pytest.mark.parametrize(
    ("fold", "sentence"),
    [
        (record("fold", "a"), "fold: applied at 1 of 3 sites; no site any more: b, c"),
        (
            record("fold", "a", refused={"b": "multiple-readers", "c": "tiny-scale", "d": "post-norm"}),
            "fold: applied at 1 of 3 sites; refused now: b (multiple-readers), c (tiny-scale)",
        ),
        (
            record("fold", "a", refused={"b": "multiple-readers"}),
            "fold: applied at 1 of 3 sites; no site any more: c; refused now: b (multiple-readers)",
        ),
        # As many as before, but one that was applied is not.
        (record("fold", "a", "c", "d", refused={"b": "multiple-readers"}), "fold: refused now: b (multiple-readers)"),
        (record("fold", "a", "b", "c", outcome="reverted", reason="twin gate"), "fold: reverted now: twin gate"),
    ],
)
def test_a_pass_that_lost_sites_names_them(fold: StoredPass, sentence: str) -> None:
    assert worse(passes=passes(fold)) == (sentence,)


def test_a_pass_that_is_missing_names_its_sites() -> None:
    assert worse(passes=passes()) == ("fold: not in the pipeline; applied before at a, b, c",)


def test_many_sites_fit_a_line() -> None:
    many = replace(BEFORE, passes=(record("fold", *(f"s{n}" for n in range(9))),))
    (sentence,) = regressions(many, replace(many, passes=(record("fold", "s0", "s1"),)))
    assert sentence == "fold: applied at 2 of 9 sites; no site any more: s2, s3, s4, s5, s6 and 2 more"


@pytest.mark.parametrize(
    "changed",
    [
        passes(record("fold", "a", "b", "c", "d")),
        # Named anew by another version of torch.
        passes(record("fold", "a", "b", "renamed")),
        passes(record("fold", "a", "b", refused={"c": "already-rewritten"})),
        # It respells for the others, and what is spelled right already needs none.
        (record("canonicalize-aten"), *BEFORE.passes[1:]),
        (*BEFORE.passes, record("new", "x")),
    ],
)
def test_other_and_more_sites_are_no_worse(changed: tuple[StoredPass, ...]) -> None:
    assert worse(passes=changed) == ()


def test_a_pass_that_was_reverted_before_may_be_reverted_or_kept() -> None:
    reverted = record("fold", "a", outcome="reverted", reason="twin gate: 1")
    before = replace(BEFORE, passes=(reverted,))
    assert regressions(before, replace(before, passes=(replace(reverted, reason="twin gate: 2"),))) == ()
    assert regressions(before, replace(before, passes=(record("fold", "a"),))) == ()


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ("verified", "approximate"),
        ("verified", "verified-on-cpu"),
        ("verified", "not-verified"),
        ("approximate", "not-verified"),
        ("not-verified", "inconclusive"),
        ("inconclusive", "different"),
    ],
)
def test_a_worse_outcome_is_told_and_a_better_one_is_not(before: str, now: str) -> None:
    old, new = replace(BEFORE, outcome=before), replace(BEFORE, outcome=now)
    assert regressions(old, new) == (f"outcome: {now}, {before} before",)
    assert regressions(new, old) == ()


def test_a_dry_run_has_no_outcome_to_compare() -> None:
    dry = replace(BEFORE, outcome="dry-run", lowered=(), census_lowered={}, runtime_level="")
    assert regressions(BEFORE, dry) == regressions(dry, BEFORE) == ()


def test_a_lower_optimisation_level_is_told() -> None:
    assert worse(runtime_level="basic") == ("optimisation level of the runtime: basic, all before",)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"census_after": {"aten.add": 5, "aten.mul": 2}},
            "captured operators after the last pass: 7, 6 before: aten.add 5 (4 before)",
        ),
        (
            {"census_after": {"aten.add": 3, "aten.mul": 2, "aten.neg": 2}},
            "captured operators after the last pass: 7, 6 before: aten.neg 2 (0 before)",
        ),
        ({"census_lowered": {"Add": 4, "Cast": 1}}, "lowered operators: 5, 4 before: Cast 1 (0 before)"),
    ],
)
def test_more_operators_are_named(changes: dict[str, Any], sentence: str) -> None:
    assert worse(**changes) == (sentence,)


@pytest.mark.parametrize("census", [{"aten.add": 4, "aten.addcmul": 1}, {"aten.mul": 3, "aten.add": 3}, {}])
def test_operators_that_stand_for_others_are_no_worse(census: dict[str, int]) -> None:
    assert worse(census_after=census) == ()


def test_bytes_may_grow_a_little() -> None:
    most = 101_000 + BYTES_SLACK
    assert worse(parameter_bytes=(1, most)) == ()
    assert worse(parameter_bytes=(1, most + 1)) == ("stored tensors: 102,025 bytes, 100,000 before (+2.0%)",)


def test_errors_may_grow_by_the_factor_or_below_the_floor() -> None:
    base = figures(y=0.3)
    assert grown_errors(base, figures(y=0.3 * RATIO_FACTOR)) == ()
    assert grown_errors(base, figures(y=0.61)) == ("output y: error ratio 0.61, 0.30 before (case traced)",)
    assert grown_errors(figures(y=0.0), figures(y=RATIO_FLOOR)) == ()
    assert len(grown_errors(figures(y=0.0), figures(y=0.26))) == 1
    assert len(grown_errors(base, figures(y=float("inf")))) == 1


def test_errors_are_compared_by_output_over_the_cases_of_both() -> None:
    before = (StoredFigure("y", "small", 0.1), StoredFigure("y", "large", 0.4), StoredFigure("z", "small", 0.1))
    new_case = (StoredFigure("y", "other", 0.99), StoredFigure("y", "small", 0.7), StoredFigure("w", "small", 0.9))
    assert grown_errors(before, new_case) == ("output y: error ratio 0.70, 0.10 before (case small)",)
    # Another case is the worst now, and no worse than the worst of before.
    assert grown_errors(before, (StoredFigure("y", "small", 0.7), StoredFigure("y", "large", 0.1))) == ()


def test_errors_of_the_lowered_file_are_compared_level_by_level() -> None:
    now = (StoredVerdict("all", "equivalent", figures(y=0.9)), StoredVerdict("disabled", "equivalent", figures(y=0.7)))
    assert worse(lowered=now) == ("output y: error ratio 0.70, 0.30 before (level disabled, case traced)",)


def test_new_warnings_are_told_and_other_numbers_in_old_ones_are_not() -> None:
    assert worse(warnings=("runtime differs by 2.5e-4",)) == ()
    assert worse(warnings=("runtime differs by 1.5e-3", "a new one")) == ("new warning: a new one",)


def test_a_reverted_pass_is_told_once() -> None:
    fold = record("fold", "a", outcome="reverted", reason="twin gate")
    assert worse(passes=passes(fold), warnings=("fold was reverted: twin gate",)) == ("fold: reverted now: twin gate",)
    new = record("newer", "a", outcome="reverted", reason="twin gate")
    sentences = worse(passes=(*BEFORE.passes, new), warnings=("newer was reverted: twin gate",))
    assert sentences == ("new warning: newer was reverted: twin gate",)
