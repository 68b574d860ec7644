"""Norms before MLPs are swapped first, then those before attention, the final one last."""

import pytest
import torch
from torch import fx

import flowopt
from flowopt.program.program import Program
from flowopt.recovery.norm_order import norm_order
from tests.recovery.tiny_transformer import norms_of, tiny_program
from tests.zoo.text_models import bert, gpt2, llama
from tests.zoo.zoo_model import ZooModel


def captured(model: ZooModel) -> Program:
    return flowopt.capture(model.module, (), model.kwargs, dynamic=model.dynamic, dims=model.dims)


def test_a_pre_norm_stack_with_written_attention() -> None:
    program = tiny_program()
    order = norm_order(program, norms_of(program))
    assert order == ("layer_norm_1", "layer_norm_3", "layer_norm", "layer_norm_2", "layer_norm_4")


@pytest.mark.slow
def test_gpt2_has_its_final_norm_last() -> None:
    program = captured(gpt2())
    order = norm_order(program, norms_of(program))
    assert order == ("layer_norm_1", "layer_norm_3", "layer_norm", "layer_norm_2", "layer_norm_4")


@pytest.mark.slow
def test_rotary_attention_is_attention() -> None:
    program = captured(llama())
    gains = [n for n in program.graph.nodes if n.target is torch.ops.aten.mul.Tensor and _is_gain(n)]
    names = [n.name for n in gains]
    assert norm_order(program, names) == (names[1], names[3], names[0], names[2], names[4])


@pytest.mark.slow
def test_in_a_post_norm_stack_each_norm_counts_by_what_reads_it() -> None:
    program = captured(bert())
    names = list(norms_of(program))
    order = norm_order(program, names)
    # The embedding's norm and that of the first block come before attention, the last one before the pooler.
    assert order == (names[1], names[3], names[0], names[2], names[4])


def _is_gain(node: fx.Node) -> bool:
    return any(source.op == "get_attr" and "norm" in str(source.target) for source in node.all_input_nodes)
