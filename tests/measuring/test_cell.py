"""One cell: who is chosen, and what is left when a contender fails."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from flowopt.measuring.cell import measured_cell
from flowopt.measuring.contender import Contender
from flowopt.measuring.process import ContenderFailedError
from flowopt.measuring.rounds import Plan
from flowopt.report.bench import BenchCell
from tests.measuring.conftest import TINY

SHORT = Plan(burst=0.002, fewest=2, most=3, budget=5.0)
INPUTS = {"ids": torch.zeros(1, 3, dtype=torch.int64), "mask": torch.ones(1, 3, dtype=torch.int64)}
EAGER = Contender("eager", "eager", TINY)


def model(name: str) -> Contender:
    return Contender(name, "eager", f"tests.measuring.models:{name}")


def cell(
    ours: Contender, others: Sequence[Contender], on_progress: Callable[[str], None] = lambda _: None
) -> BenchCell:
    return measured_cell(
        "tiny", {}, ours, others, INPUTS, threads=1, plan=SHORT, failures={}, peaks=None, on_progress=on_progress
    )


@pytest.mark.slow
def test_all_are_scouted_and_only_the_chosen_are_measured(
    artifact: Path, exported: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    plain = Contender("ort", "onnxruntime", str(exported), is_plain=True)
    steps: list[str] = []
    found = measured_cell(
        "tiny",
        {"batch": 1, "sequence": 3},
        Contender("flowopt", "artifact", str(artifact)),
        [EAGER, plain],
        INPUTS,
        threads=1,
        plan=SHORT,
        failures={"onnxsim": "it crashed"},
        peaks=None,
        on_progress=steps.append,
    )
    assert set(found.scouted) == {"flowopt", "eager", "ort"}
    assert found.plain == "ort" and found.best in ("eager", "ort")
    assert set(found.measured) == {"flowopt", "ort", found.best}
    assert set(found.ratios) == {"ort", found.best}
    assert found.failures == {"onnxsim": "it crashed"}
    assert found.label == "tiny batch=1 sequence=3"
    # The largest of three sums of 16 products in float32.
    assert all(0 <= value < 1e-5 for value in found.differences.values()) and len(found.differences) == 2
    opened = ["opening flowopt", "opening eager", "opening ort"]
    assert steps[:6] == [*opened, "scouting", "measuring, round 1", "measuring, round 2"]
    assert list(tmp_path.iterdir()) == []


def test_a_contender_that_does_not_open_or_dies_loses_its_own_figures_alone(artifact: Path) -> None:
    # It runs twice to open: the first burst ends it.
    found = cell(Contender("flowopt", "artifact", str(artifact)), [model("failing"), model("leaving_later"), EAGER])
    assert set(found.scouted) == {"flowopt", "eager"}
    assert found.failures["failing"] == "ValueError: this model does not run"
    assert found.failures["leaving_later"].startswith("it ended with code 7")
    assert found.best == "eager" and set(found.ratios) == {"eager"} and found.plain is None


def test_ours_that_does_not_run_is_an_error_with_its_reason() -> None:
    with pytest.raises(ContenderFailedError, match="ValueError: this model does not run"):
        cell(model("failing"), [])


@pytest.mark.slow
def test_ours_that_dies_later_is_an_error_with_its_reason() -> None:
    with pytest.raises(ContenderFailedError, match="it ended with code 7"):
        cell(model("leaving_later"), [])


def test_another_function_is_seen_in_the_differences() -> None:
    other = model("other")
    assert cell(EAGER, [other]).differences["other"] > 0.1


@pytest.mark.slow
def test_an_interrupt_ends_every_worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def interrupted(step: str) -> None:
        if step == "scouting":
            assert list(tmp_path.iterdir())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cell(EAGER, [], interrupted)
    assert list(tmp_path.iterdir()) == []
