"""No model of the zoo makes verification accuse a right pass, whatever the seed."""

from functools import cache

import pytest

from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.workflows.pipelines import Pipeline
from tests.zoo.models import ZOO


@cache
def captured(name: str) -> Program:
    model = ZOO[name]()
    return capture(model.module, (), model.kwargs, dynamic=model.dynamic, dims=model.dims)


def assert_not_accused(name: str, seed: int) -> None:
    for record in Pipeline("exact").run(captured(name), seed=seed).records:
        assert record.outcome != "reverted", f"{record.name}: {record.reason}"


def test_no_pass_is_accused() -> None:
    assert_not_accused("digits-vit", seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", ZOO)
def test_no_pass_is_accused_with_any_seed(name: str, seed: int) -> None:
    assert_not_accused(name, seed)
