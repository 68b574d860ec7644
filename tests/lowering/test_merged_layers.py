"""Merged layers in an ONNX file: one product, and one split along the last axis."""

from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper

from flowopt.lowering.onnx.export import lower_to_onnx
from flowopt.lowering.staging import Staging
from flowopt.passes.merge.merge_parallel_linears import MergeParallelLinears
from flowopt.pipeline.runner import run_passes
from flowopt.program.capture import capture
from tests.passes.merge.parallel import parallel
from tests.passes.programs import normal


@pytest.mark.parametrize(("rank", "product"), [(2, "Gemm"), (3, "MatMul")])
def test_one_product_and_one_split_along_the_last_axis(tmp_path: Path, rank: int, product: str) -> None:
    x = normal(*(3, 5, 6)[3 - rank :])
    free = {axis: f"size_{axis}" for axis in range(rank - 1)}
    program = capture(parallel(3, 2, 4), (x,), dynamic={"x": free})
    merged = run_passes(program, [MergeParallelLinears(min_gain=0.0)]).program
    with Staging(tmp_path / "out") as staging:
        lowered = lower_to_onnx(merged, staging)
        graph = onnx.load(lowered.model, load_external_data=False).graph
    assert {name: lowered.op_census.get(name, 0) for name in (product, "Split", "Slice")} == {
        product: 1,
        "Split": 1,
        "Slice": 0,
    }
    (split,) = (node for node in graph.node if node.op_type == "Split")
    (axis,) = (attribute.i for attribute in split.attribute if attribute.name == "axis")
    assert axis in (-1, rank - 1)
    sizes = {tensor.name: tensor for tensor in graph.initializer}[split.input[1]]
    assert numpy_helper.to_array(sizes).tolist() == [3, 2, 4]
    shape = [d.dim_param or d.dim_value for d in graph.output[0].type.tensor_type.shape.dim]
    assert shape == [*free.values(), 3]
