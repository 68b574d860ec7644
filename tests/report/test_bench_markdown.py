"""A bench as text."""

import json
from pathlib import Path

from flowopt.report.bench import BenchCell, BenchReport, Peaks, Ratio, Timing
from flowopt.report.bench_markdown import bench_markdown
from flowopt.report.to_json import to_json

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "bench.md"


def timing(milliseconds: float) -> Timing:
    seconds = milliseconds / 1e3
    return Timing(seconds, seconds * 0.95, seconds * 1.1, 12, 400)


def report() -> BenchReport:
    scouted = {name: timing(ms) for name, ms in {"flowopt": 2.1, "ort": 2.6, "onnxslim": 2.4, "eager": 7.0}.items()}
    full = BenchCell(
        "minilm",
        {"batch": 1, "sequence": 32},
        "flowopt",
        scouted,
        {"flowopt": timing(2.0), "ort": timing(2.5), "onnxslim": timing(2.5)},
        {"ort": Ratio(0.8, 0.78, 0.83, 12), "onnxslim": Ratio(0.82, 0.8, 0.85, 12)},
        plain="ort",
        best="onnxslim",
        failures={"onnxsim": "it crashed with SIGSEGV"},
        differences={"ort": 1e-7, "eager": 0.25},
        peaks=Peaks(4_000_000_000, 100_000_000, 3e12, 8e10),
    )
    alone = BenchCell("resnet", {"batch": 8}, "flowopt", {"flowopt": timing(1500.0)}, {"flowopt": timing(1500.0)}, {})
    return BenchReport((full, alone), "A processor", 2, "2026-01-31", {"torch": "2.13.0", "onnxruntime": "1.30"})


def test_the_table_is_the_golden_one() -> None:
    assert bench_markdown(report()) == GOLDEN.read_text(encoding="utf-8")


def test_groups_are_tables_of_their_own() -> None:
    found = bench_markdown(report(), {"minilm": "Text", "resnet": "Images"})
    text, images = found.index("**Text**"), found.index("**Images**")
    assert text < found.index("| minilm") < images < found.index("| resnet")
    assert found.count("| model | ms (quartiles)") == 2


def test_every_row_has_as_many_columns_as_its_head() -> None:
    for table in bench_markdown(report()).split("\n\n"):
        rows = [line.count("|") for line in table.splitlines() if line.startswith("|")]
        assert len(set(rows)) <= 1


def test_json_holds_every_figure() -> None:
    found = json.loads(to_json(report()))
    first = found["cells"][0]
    assert found["schema_version"] == 1 and found["threads"] == 2
    assert first["ratios"]["ort"] == {"value": 0.8, "low": 0.78, "high": 0.83, "rounds": 12}
    assert first["scouted"]["eager"]["median"] == 0.007
    assert first["peaks"]["flop"] == 4_000_000_000
    assert found["cells"][1]["best"] is None


def test_json_comes_back_as_the_same_report() -> None:
    assert BenchReport.of(json.loads(to_json(report()))) == report()
