"""Verify in a pytest test: a rewrite, and that an optimized model is still the model.

python -m pytest examples/test_my_model.py

The fixture `flowopt_equivalent` comes with flowopt. `--flowopt-level full` makes it more thorough: for a nightly run.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import flowopt
from flowopt.testing import assert_refuses, assert_rewrites

sys.path.insert(0, str(Path(__file__).parent))
from write_a_pass import Gate, RecognizeSilu


def test_the_pass_fires_and_is_right() -> None:
    torch.manual_seed(0)
    assert_rewrites(
        RecognizeSilu(),
        Gate().eval(),
        (torch.randn(3, 8),),
        before={"aten.sigmoid": 1, "aten.mul.Tensor": 2, "aten.silu": 0},
        after={"aten.sigmoid": 0, "aten.mul.Tensor": 1, "aten.silu": 1},
        max_ulp=4,  # SiLU and a product, as three roundings or as two
    )


def test_the_pass_refuses_other_products() -> None:
    class Square(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.sigmoid(x + 1)

    assert_refuses(RecognizeSilu(), Square().eval(), (torch.randn(3, 8),), code="no-sigmoid")


def test_the_optimized_model_is_the_model(flowopt_equivalent: Callable[..., flowopt.Verdict], tmp_path: Path) -> None:
    torch.manual_seed(0)
    program = flowopt.capture(Gate().eval(), (torch.randn(2, 8),), dynamic={"x": {0: "batch"}})
    result = flowopt.optimize(program, target="cpu", folder=tmp_path / "gate.flowopt")
    verdict = flowopt_equivalent(program, result.artifact)
    assert verdict.power < 1e-5  # the smallest relative change that the check would have seen


def test_another_model_is_not_the_model(flowopt_equivalent: Callable[..., flowopt.Verdict]) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 8)
    one, other = (flowopt.capture(Gate().eval(), (x,), dynamic={"x": {0: "batch"}}) for _ in range(2))
    with pytest.raises(AssertionError, match="different: .* gate: output"):
        flowopt_equivalent(one, other)
