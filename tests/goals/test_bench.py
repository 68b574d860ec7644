"""What the rows say of a bench."""

import dataclasses
from pathlib import Path

import pytest

from flowopt.report.bench import BenchCell, Ratio, Timing
from flowopt.workflows.bench import bench_report
from tests.benchmarks.bench import _started
from tests.benchmarks.bench_cells import ALL_LABELS, SHORT_LABELS, BenchFile, label, sizes_of
from tests.benchmarks.models import FACTORIES
from tests.goals.bench import fitted_exponent, short_of, table_of


def cell(model: str, sizes: dict[str, int], low: float, high: float) -> BenchCell:
    timing = Timing(0.001, 0.001, 0.001, 3, 9)
    ratio = Ratio((low + high) / 2, low, high, 3)
    both = {"flowopt": timing, "ort": timing}
    return BenchCell(model, sizes, "flowopt", both, both, {"ort": ratio}, plain="ort", best="ort")


def bench(low: float = 0.79, high: float = 0.81, commit: str = "abc") -> BenchFile:
    cells = [cell(model, sizes, low, high) for model in FACTORIES for sizes in sizes_of(model)]
    return BenchFile(commit, bench_report(cells, 2))


def without(made: BenchFile, name: str) -> BenchFile:
    kept = tuple(one for one in made.report.cells if one.label != name)
    return BenchFile(made.commit, dataclasses.replace(made.report, cells=kept))


def test_the_bench_has_28_cells_ten_of_them_short_transformers() -> None:
    assert len(set(ALL_LABELS)) == 28
    assert len(set(SHORT_LABELS)) == 10
    assert {name.split()[0] for name in SHORT_LABELS} == {"minilm", "gpt2", "llama", "vit-short", "dit-short"}


def test_a_bench_in_which_every_cell_is_faster_meets_both_rows() -> None:
    table, short = table_of(bench()), short_of(bench())
    assert table.is_met and table.value == "28 of 28 cells, 28 surely faster" and table.details == ()
    assert short.is_met and short.value == "geometric mean 0.800 of the plain export"


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(1.031, 1.05, "slower: "), (1.0, 1.07, "not sure enough: "), (1.02, 1.06, "")],
)
def test_a_cell_falls_short_when_it_is_surely_slower_or_too_uncertain(low: float, high: float, said: str) -> None:
    made = without(bench(), "gpt2 batch=8 sequence=128")
    made.report = dataclasses.replace(
        made.report, cells=(*made.report.cells, cell("gpt2", {"batch": 8, "sequence": 128}, low, high))
    )
    found = table_of(made)
    assert found.is_met is (not said)
    assert all(line.startswith(f"gpt2 batch=8 sequence=128: {said}") for line in found.details)
    assert len(found.details) == bool(said)


def test_a_cell_that_is_missing_falls_short_in_both_rows() -> None:
    name = label("vit-short", {"batch": 1})
    made = without(bench(), name)
    made.failed[name] = "no artifact"
    assert table_of(made).is_met is short_of(made).is_met is False
    assert table_of(made).details == (f"{name}: no artifact",)
    assert made.is_whole


def test_short_transformers_that_are_not_fast_enough_are_listed() -> None:
    found = short_of(bench(0.94, 0.96))
    assert found.is_met is False and len(found.details) == 10


def test_a_file_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    made = bench()
    made.failed["x"] = "why"
    made.save(tmp_path)
    assert BenchFile.load(tmp_path) == made
    text = (tmp_path / "bench.md").read_text()
    assert "**Text models**" in text and "**Image models**" in text
    assert "10 cells of transformers at 17 to 64 tokens: 0.800." in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.json", "bench.md"]


def test_without_a_file_there_is_no_bench(tmp_path: Path) -> None:
    assert BenchFile.load(tmp_path) is None


def test_a_run_goes_on_with_cells_of_this_commit_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.benchmarks.bench.commit", lambda: "abc")
    bench().save(tmp_path)
    assert len(_started(["minilm"], keep=True, folder=tmp_path).report.cells) == 28
    assert len(_started(["minilm"], keep=False, folder=tmp_path).report.cells) == 24
    bench(commit="older").save(tmp_path)
    assert _started(["minilm"], keep=True, folder=tmp_path).report.cells == ()


def test_the_exponent_is_that_of_a_power() -> None:
    assert fitted_exponent({n: 3.0 * n**1.25 for n in (2, 6, 12)}) == pytest.approx(1.25)
