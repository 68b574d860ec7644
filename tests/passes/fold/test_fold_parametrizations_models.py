"""Adapters beside the projections of whole models."""

import pytest
from torch import nn

import flowopt
from flowopt.ir.text import operator_census
from flowopt.workflows.pipelines import Pipeline
from tests.goals.parametrizations import exact_passes
from tests.passes.fold.adapters import Lora
from tests.zoo.models import ZOO, ZooModel, randomise

# Model to the layers that get an adapter, and how many there are.
ADAPTED = {"gpt2": (("c_attn", "c_fc"), 4), "llama": (("q_proj", "v_proj", "down_proj"), 6)}


def adapted(model: ZooModel, names: tuple[str, ...]) -> nn.Module:
    for parent in list(model.module.modules()):
        for name, child in list(parent.named_children()):
            if name in names:
                inputs, outputs = reversed(child.get_parameter("weight").shape)
                if not isinstance(child, nn.Linear):
                    inputs, outputs = outputs, inputs
                pair = (nn.Linear(inputs, 2, bias=False), nn.Linear(2, outputs, bias=False))
                setattr(parent, name, Lora(child, [pair]))
    randomise(model.module, 1)
    return model.module.eval()


@pytest.mark.parametrize("name", ADAPTED)
def test_every_adapter_folds_and_no_operator_of_it_is_left(name: str) -> None:
    names, count = ADAPTED[name]
    plain, model = ZOO[name](), ZOO[name]()
    pipeline = Pipeline(exact_passes())
    without = pipeline.run(
        flowopt.capture(plain.module, (), plain.kwargs, dynamic=plain.dynamic, dims=plain.dims), verify="off"
    )
    module = adapted(model, names)
    run = pipeline.run(flowopt.capture(module, (), model.kwargs, dynamic=model.dynamic, dims=model.dims))
    (record,) = (r for r in run.records if r.name == "fold-parametrizations")
    assert (record.outcome, len(record.applied), record.anchors) == ("kept", count, count), record.refused
    assert not [r.name for r in run.records if r.outcome == "reverted"]
    left, wanted = operator_census(run.program.graph), operator_census(without.program.graph)
    for operator in ("aten.linear", "aten.add.Tensor", "aten.mul.Tensor"):
        assert left[operator] == wanted[operator], operator
