import pytest

from flowopt.pipeline.runner import run_passes
from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.workflows.pipelines import Pipeline
from tests.passes.programs import decomposed
from tests.zoo.models import ZOO, ZooModel

# torch's own decompositions stumble over GPT-2: they view its attention's transposed result.
NAMES = [name for name in ZOO if name != "gpt2"]

FOLDS = ("fold-batch-norm", "fold-norm-affine")


def captured(model: ZooModel) -> Program:
    return capture(model.module, (), model.kwargs)


def folds(program: Program) -> dict[str, tuple[int, dict[str, int]]]:
    records = run_passes(program, Pipeline("exact").passes).records
    return {r.name: (len(r.applied), r.refusal_counts) for r in records if r.name in FOLDS}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_decomposed_model_folds_wherever_the_captured_one_does(name: str) -> None:
    model = ZOO[name]()
    assert folds(decomposed(model.module, **model.kwargs)) == folds(captured(model))
