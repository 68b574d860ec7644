"""Mixtures of experts in transformers: rows sorted by expert, whose products ONNX has no operator for."""

from pathlib import Path

import numpy
import pytest
import torch
from torch import Tensor, nn

from tests.lowering import models
from tests.lowering.build import build
from tests.zoo.quiet import quiet_transformers

EXPERTS, WIDTH, OUT = 3, 6, 5


class Experts(nn.Module):
    """Rows by expert: the ends of the experts' rows are an input."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(EXPERTS, OUT, WIDTH, dtype=dtype))

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        product: Tensor = torch.ops.transformers.grouped_mm_fallback(x, self.weight.transpose(1, 2), ends)
        return product


def compared(path: Path, *cases: list[int], dtype: torch.dtype = torch.float32) -> None:
    """Eight rows through the file and through the module, for each choice of ends."""
    quiet_transformers()
    pytest.importorskip("transformers.integrations.moe")
    module = Experts(dtype)
    example = (torch.randn(5, WIDTH, dtype=dtype), torch.tensor([2, 4, 5]))
    program = models.program(module, *example, dynamic={"x": {0: "rows"}})
    artifact, _ = build(program, path / "experts.flowopt")
    for ends in cases:
        x, given = torch.randn(8, WIDTH, dtype=dtype), torch.tensor(ends)
        with torch.no_grad():
            expected = module(x, given)
        found = artifact.run(x, given)
        assert isinstance(found, Tensor)
        assert found.shape == (8, OUT)
        assert expected.abs().max() > 0.1
        assert not found[ends[-1] :].any()
        numpy.testing.assert_allclose(found.numpy(), expected.numpy(), atol=100 * torch.finfo(dtype).eps)


def test_each_expert_multiplies_its_own_rows_and_may_have_none(tmp_path: Path) -> None:
    compared(tmp_path, [3, 5, 8], [0, 8, 8], [2, 2, 8], [0, 0, 8])


def test_rows_behind_the_last_expert_are_zeros(tmp_path: Path) -> None:
    compared(tmp_path, [2, 3, 6], [0, 0, 1])


def test_double_precision(tmp_path: Path) -> None:
    compared(tmp_path, [1, 6, 8], dtype=torch.float64)
