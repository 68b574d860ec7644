"""Weights are streamed out of the program's own memory; what must be copied is copied in pieces."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flowopt.lowering.onnx import weights as weights_module
from flowopt.lowering.onnx.export import lower_to_onnx
from flowopt.lowering.staging import Staging
from tests.lowering import models
from tests.lowering.build import build
from tests.lowering.test_onnx_export import require_equal


class Wide(nn.Module):
    """A product, whose weight is stored transposed, and tables that are stored as they are."""

    flags: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 96)
        self.table = nn.Parameter(torch.zeros(96, 40))
        self.narrow = nn.Parameter(torch.zeros(40, 700, dtype=torch.bfloat16))
        self.register_buffer("flags", torch.arange(2000).reshape(2, 1000) % 3 == 0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.linear(x) @ self.table @ self.narrow.float(), self.flags


def test_nothing_is_copied_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = models.program(Wide(), torch.randn(2, 3, 64))
    addresses: list[int] = []
    sizes: list[int] = []
    original = Staging.weights

    def recording(self: Staging, chunks: Iterable[bytes | memoryview]) -> tuple[str, ...]:
        def passed() -> Iterable[bytes | memoryview]:
            for chunk in chunks:
                addresses.append(np.frombuffer(chunk, np.uint8).ctypes.data)
                sizes.append(len(chunk))
                yield chunk

        return original(self, passed())

    monkeypatch.setattr(Staging, "weights", recording)
    monkeypatch.setattr(weights_module, "PIECE_BYTES", 4096)
    with Staging(tmp_path / "a") as staging:
        lower_to_onnx(program, staging)
    assert program.tensors["table"].data_ptr() in addresses
    assert program.tensors["linear.weight"].data_ptr() not in addresses
    # 64 x 96 floats transposed: six pieces of 4096 bytes (10 rows of 384 bytes each).
    assert sizes.count(10 * 384) == 6 and max(sizes) == program.tensors["narrow"].nbytes


def test_every_storage_dtype_arrives(tmp_path: Path) -> None:
    program = models.program(Wide(), torch.randn(2, 3, 64))
    artifact, _ = build(program, tmp_path / "a")
    x = torch.randn(2, 3, 64)
    require_equal(artifact.run(x), program.run(x))
