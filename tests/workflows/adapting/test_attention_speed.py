"""Attention timed as artifacts run it, at lengths short enough for a test."""

import pytest
import torch
from torch import Tensor

from flowopt.ops.attention import AttentionShape, LinearForm, linearization
from flowopt.ops.attention.linear_form import State
from flowopt.runtime.onnx_session import cuda_available
from flowopt.workflows.adapting.attention_speed import attention_speed

SHAPE = AttentionShape(heads=4, head_dim=8, value_dim=6, is_causal=False, scale=0.3)


class Fixed(LinearForm):
    """Takes no length but those that it knows, as torch.export sees it."""

    def __init__(self, shape: AttentionShape, lengths: tuple[int, ...] = (16, 32)) -> None:
        super().__init__()
        self.shape, self.form, self.chunk, self.lengths = shape, "parallel", 64, lengths

    def forward(self, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None = None) -> Tensor:
        if query.shape[2] not in self.lengths:
            raise ValueError(f"length {query.shape[2]}")
        return query.sum(-1, keepdim=True) * value.mean(2, keepdim=True)

    def initial_state(self, like: Tensor) -> State:
        return ()

    def step(self, query: Tensor, key: Tensor, value: Tensor, state: State) -> tuple[Tensor, State]:
        return value, state


def test_both_are_timed_at_every_length_by_one_artifact_each() -> None:
    said: list[str] = []
    found = attention_speed(
        linearization("elu"), SHAPE, key_heads=2, lengths=(32, 16), threads=1, on_progress=said.append
    )
    assert found.reason == "" and found.crossover is not None
    assert found.crossover.lengths == (16, 32)
    assert all(0 < time < 1e3 for time in (*found.crossover.softmax_ms, *found.crossover.linear_ms))
    assert [line for line in said if line.startswith("lowering")] == [
        "lowering softmax attention to time it",
        "lowering linear attention to time it",
    ]


@pytest.mark.slow
def test_a_stand_in_of_fixed_lengths_is_lowered_for_each() -> None:
    said: list[str] = []
    found = attention_speed(Fixed, SHAPE, lengths=(16, 32), threads=1, on_progress=said.append)
    assert found.crossover is not None, found.reason
    assert found.crossover.lengths == (16, 32)
    assert sum(line.startswith("lowering linear") for line in said) == 2


def test_what_cannot_be_lowered_is_not_measured_and_says_why() -> None:
    found = attention_speed(lambda shape: Fixed(shape, ()), SHAPE, lengths=(16, 32))
    assert found.crossover is None
    assert "length 16" in found.reason


@pytest.mark.parametrize(("target", "arch"), [("cuda", None), ("tvm-cuda", "sm_90")])
def test_without_a_device_nothing_is_measured(target: str, arch: str | None) -> None:
    if cuda_available():
        pytest.skip("there is a device")
    found = attention_speed(linearization("elu"), SHAPE, target=target, arch=arch)
    assert (found.crossover, found.reason) == (None, f"there is no device to time {target} on")


@pytest.mark.slow
def test_libraries_are_timed_too() -> None:
    pytest.importorskip("tvm")
    found = attention_speed(linearization("elu"), SHAPE, target="tvm", lengths=(16, 32), threads=1)
    assert found.crossover is not None, found.reason
    assert found.crossover.lengths == (16, 32)


@pytest.mark.slow
def test_half_precision_is_timed_in_half_precision() -> None:
    found = attention_speed(linearization("hedgehog"), SHAPE, dtype=torch.float16, lengths=(16, 32), threads=1)
    assert found.crossover is not None, found.reason
