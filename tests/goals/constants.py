"""Rows of cleanup and constants: the exact preset is right, and has nothing left to do after it ran."""

from functools import partial

from flowopt.ir.fingerprint import same_structure
from flowopt.workflows.pipelines import Pipeline
from tests.goals.row import Measured, Row, counted, problem_of
from tests.goals.spine import captured
from tests.zoo.models import ZOO


def check_exact_preset(name: str) -> None:
    """Every pass of the preset is kept or has nothing to do on a zoo model, and a second run changes nothing."""
    program = captured(name)
    first = Pipeline("exact").run(program)
    undone = [f"{r.name}: {r.reason}" for r in first.records if r.outcome == "reverted"]
    assert not undone, undone[0]
    assert all(r.verdict is None or r.verdict.outcome == "equivalent" for r in first.records)
    second = Pipeline("exact").run(first.program)
    again = [f"{r.name} fires again at {r.applied[0].site}" for r in second.records if r.applied]
    assert not again, again[0]
    assert same_structure(first.program.graph, second.program.graph), "the second run left another graph"


def _right() -> Measured:
    good, short = counted({name: problem_of(partial(check_exact_preset, name)) for name in ZOO})
    return Measured(f"{good} of {len(ZOO)} equivalent and idempotent", good == len(ZOO), short)


ROWS = (Row("const.right", f"{len(ZOO)} of {len(ZOO)}", _right, is_long=True),)
