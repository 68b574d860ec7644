"""Rows of parametrizations: of a weight that is computed from other tensors nothing is left but the weight."""

from functools import partial

import torch

from flowopt.ir.text import operator_census
from flowopt.pipeline.presets import PRESETS
from flowopt.program.capture import capture
from flowopt.workflows.pipelines import Pipeline
from tests.goals.row import Measured, Row, counted, problem_of
from tests.passes.fold.parametrized import BY_ADAPTERS, BY_CONSTANTS

KINDS = BY_CONSTANTS | BY_ADAPTERS
_PASSES = ("fold-parametrizations", "recognize-batch-channel-norm")
# float64 against float64: what is left is rounding of sums of at most 54 products.
_TOLERANCE = 1e-12


def exact_passes() -> list[str]:
    """The exact preset, with the passes of parametrizations after ``fold-constants`` where it has none."""
    names = PRESETS["exact"]
    at = names.index("fold-constants") + 1
    return [*names[:at], *(name for name in _PASSES if name not in names), *names[at:]]


def check_parametrization(kind: str) -> None:
    """After the exact passes a model has the operators and the stored numbers of the plain one, and its own values."""
    made = KINDS[kind]()
    pipeline = Pipeline(exact_passes())
    run = pipeline.run(capture(made.module, (made.x,)), verify="off")
    plain = pipeline.run(capture(made.plain, (made.x,)), verify="off").program
    left = operator_census(run.program.graph)
    assert left == operator_census(plain.graph), f"left are {dict(left)}"
    numbers = sum(t.numel() for t in run.program.tensors.values())
    assert numbers == sum(t.numel() for t in plain.tensors.values()), f"{numbers} numbers are stored"
    with torch.no_grad():
        wanted = made.module(made.x)
    found = run.program.run(made.x)
    assert isinstance(found, torch.Tensor)
    error = float((found - wanted).abs().max() / wanted.abs().max())
    assert error <= _TOLERANCE, f"off by {error:.1e}"


def _gone() -> Measured:
    good, short = counted({kind: problem_of(partial(check_parametrization, kind)) for kind in KINDS})
    return Measured(f"{good} of {len(KINDS)} are the plain layer, to 1e-12", good == len(KINDS), short)


ROWS = (Row("const.parametrizations", f"{len(KINDS)} of {len(KINDS)}", _gone),)
