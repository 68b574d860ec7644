"""Adapters beside the projections of whole models."""

import pytest
from torch import nn

import flowopt
from flowopt.ir.text import operator_census
from tests.passes.fold.adapters import Lora
from tests.zoo.models import ZOO, ZooModel, randomise

BEFORE = ["eliminate-no-ops", "eliminate-common-subexpressions", "simplify-shapes", "fold-constants"]
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
def test_every_adapter_folds(name: str) -> None:
    names, count = ADAPTED[name]
    model = ZOO[name]()
    module = adapted(model, names)
    program = flowopt.capture(module, (), model.kwargs, dynamic=model.dynamic, dims=model.dims)
    before = flowopt.Pipeline(BEFORE).run(program, verify="off").program
    run = flowopt.Pipeline(["fold-parametrizations"]).run(before)
    record = run.records[-1]
    assert (record.outcome, len(record.applied), record.anchors) == ("kept", count, count), record
    layers = operator_census(before.graph)["aten.linear"]
    assert operator_census(run.program.graph)["aten.linear"] == layers - 2 * count
