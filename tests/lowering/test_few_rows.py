"""Biases inside of products: where samples have few rows, and nowhere where ONNX Runtime takes the bias elsewhere."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from flowopt.program.program import Program
from tests.lowering import models
from tests.lowering.build import build
from tests.passes.programs import Written, randomised

WIDTH, HIDDEN = 16, 24
FEW, MANY = 8, 40
TOLERANCE = 2e-5


def program(forward: Callable[..., Any], *, rows: int = FEW, free: dict[int, str] | None = None) -> Program:
    layers = {
        "up": nn.Linear(WIDTH, HIDDEN),
        "gate": nn.Linear(WIDTH, HIDDEN),
        "down": nn.Linear(HIDDEN, WIDTH),
        "norm": nn.LayerNorm(WIDTH),
        "unbiased": nn.Linear(WIDTH, HIDDEN, bias=False),
    }
    module = randomised(Written(forward, **layers))
    return models.program(module, torch.randn(3, rows, WIDTH), dynamic={"x": free or {0: "batch"}})


def gated(m: Written, x: Tensor) -> Tensor:
    return m.down(m.up(x).sigmoid() * m.gate(x)).sin()


def operators(one: Program, path: Path, sizes: tuple[tuple[int, int], ...] = ((1, FEW), (5, FEW))) -> Counter[str]:
    """How often the file uses each operator; what it computes is compared."""
    artifact, _ = build(one, path / "artifact")
    for batch, rows in sizes:
        x = torch.randn(batch, rows, WIDTH, generator=torch.Generator().manual_seed(batch))
        torch.testing.assert_close(artifact.run(x), one.run(x), rtol=TOLERANCE, atol=TOLERANCE)
    graph = onnx.load(str(artifact.folder / "model.onnx"), load_external_data=False).graph
    return Counter(node.op_type for node in graph.node)


def test_a_sample_of_few_rows_has_its_biases_in_the_products(tmp_path: Path) -> None:
    found = operators(program(gated), tmp_path)
    assert (found["Gemm"], found["MatMul"], found["Add"]) == (3, 0, 0)
    # The layers that read one value share it as a matrix.
    assert found["Reshape"] == 2 + 3


def test_a_sample_of_many_rows_has_not(tmp_path: Path) -> None:
    found = operators(program(gated, rows=MANY), tmp_path, ((1, MANY),))
    assert (found["Gemm"], found["MatMul"]) == (0, 3)


def test_a_free_number_of_rows_is_not_few(tmp_path: Path) -> None:
    found = operators(program(gated, free={0: "batch", 1: "rows"}), tmp_path, ((1, 3), (2, MANY)))
    assert (found["Gemm"], found["MatMul"]) == (0, 3)


@pytest.mark.parametrize(
    "forward",
    [
        pytest.param(lambda m, x: m.down(nn.functional.gelu(m.up(x))).sin(), id="gelu"),
        pytest.param(lambda m, x: m.norm(x + m.down(m.up(x).sin())), id="norm of a sum"),
    ],
)
def test_a_bias_that_another_operator_takes_stays_outside(forward: Callable[..., Tensor], tmp_path: Path) -> None:
    found = operators(program(forward), tmp_path)
    assert (found["Gemm"], found["MatMul"]) == (1, 1)


def test_a_sum_that_is_read_elsewhere_too_keeps_no_bias_outside(tmp_path: Path) -> None:
    def residual(m: Written, x: Tensor) -> Tensor:
        total = x + m.down(m.up(x).sin())
        return m.norm(total) + total

    assert operators(program(residual), tmp_path)["Gemm"] == 2


def test_what_is_no_bias_is_added_as_before(tmp_path: Path) -> None:
    def computed(m: Written, x: Tensor) -> Tensor:
        return m.unbiased(x) + m.up(x)[:, :1] + m.unbiased(x.cos()).mean()

    found = operators(program(computed), tmp_path)
    assert (found["Gemm"], found["MatMul"]) == (1, 2)
