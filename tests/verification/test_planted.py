"""Planted passes beside a right one: the wrong are undone alone and named, the right are kept."""

import pytest
import torch

from flowopt.workflows.pipelines import Pipeline
from tests.goals.planted import RIGHT, WRONG


def test_there_are_ten_of_each() -> None:
    assert (len(WRONG), len(RIGHT)) == (10, 10)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_pass_is_undone_alone(name: str) -> None:
    plant = WRONG[name]()
    run = Pipeline(["fold-batch-norm", plant.rewrite_pass]).run(plant.program)
    fold, record = run.records[-2:]
    assert record.applied, record.refused
    assert record.outcome == "reverted"
    assert record.reason
    assert record.name == plant.rewrite_pass.text()
    assert (fold.outcome, len(fold.applied)) == ("kept", 1)
    assert not [n for n in run.program.graph.nodes if record.name in str(n.meta.get("rewritten_by"))]
    assert [n for n in run.program.graph.nodes if n.meta.get("rewritten_by") == "fold-batch-norm"]


@pytest.mark.parametrize(
    "name",
    [
        "wrong-at-batch-one",
        "wrong-at-odd-sizes",
        "epsilon-outside-the-root",
        "gelu-for-tanh-gelu",
        "scale-off-by-1e-6",
        "swallowed-nan",
        "constant-of-the-traced-size",
    ],
)
def test_a_careless_test_would_have_passed_it(name: str) -> None:
    """One random example and a thousandth of tolerance: what people do."""
    plant = WRONG[name]()
    run = Pipeline([plant.rewrite_pass]).run(plant.program, verify="off")
    assert run.records[-1].applied
    found, wanted = run.program.run(**plant.program.example), plant.program.run(**plant.program.example)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_pass_is_kept(name: str) -> None:
    plant = RIGHT[name]()
    fold, record = Pipeline(["fold-batch-norm", plant.rewrite_pass]).run(plant.program).records[-2:]
    assert record.applied, record.refused
    assert record.outcome == "kept", record.reason
    assert (fold.outcome, len(fold.applied)) == ("kept", 1)
    assert record.verdict is not None
    assert not [n for n in record.verdict.notes if "not checked alone" in n]


@pytest.mark.slow
@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("seed", range(1, 30))
def test_a_right_pass_is_kept_with_any_inputs(name: str, seed: int) -> None:
    plant = RIGHT[name]()
    records = Pipeline(["fold-batch-norm", plant.rewrite_pass]).run(plant.program, seed=seed).records
    assert [r.reason for r in records] == ["", "", ""]
