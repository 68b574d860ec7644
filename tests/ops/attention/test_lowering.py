"""Stand-ins for softmax attention lower with a free length, and run at others."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import flowopt
from flowopt.ops.attention.linear_form import Form, LinearForm
from tests.ops.attention.agreement import largest_difference
from tests.ops.attention.random_attention import attention_shape, random_attention, random_tokens

FREE = {name: {0: "batch", 2: "length"} for name in ("query", "key", "value")}
DIMS = {"batch": (1, None), "length": (1, None)}
KERNELS = ("elu", "relu", "favor", "cosformer", "hedgehog", "t2r", "flow")


class Step(nn.Module):
    """One token with the state as inputs and outputs."""

    def __init__(self, attention: LinearForm) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, query: Tensor, key: Tensor, value: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        made, state = self.attention.step(query, key, value, state)
        return made, *state


def lowered(module: nn.Module, inputs: tuple, dynamic: dict | None, target: str, folder: Path) -> flowopt.Artifact:
    dims = DIMS if dynamic else None
    program = flowopt.capture(module.eval(), inputs, dynamic=dynamic, dims=dims)
    artifact = flowopt.optimize(program, target=target, folder=folder / "made", verify="off").artifact
    assert artifact is not None
    return artifact


def single(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.float() for x in tensors)


def require_every_length(name: str, form: Form, target: str, folder: Path) -> None:
    """Causal, captured at 70 tokens of two sequences and run at fewer and more than a chunk, and with one sequence."""
    exact = random_attention(name, attention_shape(True), form)
    module = random_attention(name, attention_shape(True), form).float()
    artifact = lowered(module, single(*random_tokens(1, 70)), FREE, target, folder)
    for length, batch in ((1, 1), (64, 2), (200, 3)):
        tokens = random_tokens(length, length, batch=batch)
        found = artifact.run(*single(*tokens))
        assert isinstance(found, Tensor)
        wanted = exact(*(x.float().double() for x in tokens))
        assert largest_difference(found, wanted) < 1e-5 * wanted.abs().max()  # float32, sums of 200 products


def require_masks(name: str, is_causal: bool, target: str, folder: Path) -> None:
    shape = attention_shape(is_causal)
    exact, module = random_attention(name, shape), random_attention(name, shape).float()
    free = FREE | {"key_mask": {0: "batch", 3: "length"}}
    mask = torch.rand(3, 1, 1, 200, generator=torch.Generator().manual_seed(1)) < 0.7
    # A copy: the length would be compared with the strides of a view.
    traced = (*single(*random_tokens(1, 70)), mask[:2, ..., :70].contiguous())
    artifact = lowered(module, traced, free, target, folder)
    tokens = random_tokens(2, 200, batch=3)
    found = artifact.run(*single(*tokens), mask)
    assert isinstance(found, Tensor)
    wanted = exact(*(x.float().double() for x in tokens), mask)
    assert largest_difference(found, wanted) < 1e-5 * wanted.abs().max()  # float32, sums of 200 products


@torch.no_grad()
def require_steps(name: str, target: str, folder: Path) -> None:
    exact = random_attention(name, attention_shape(True))
    module = random_attention(name, attention_shape(True)).float()
    tokens = random_tokens(3, 5)
    state = module.initial_state(single(*tokens)[0])
    first = single(*(x[:, :, :1] for x in tokens))
    artifact = lowered(Step(module), (*first, state), None, target, folder)
    rows = []
    for i in range(5):
        found = artifact.run(*single(*(x[:, :, i : i + 1] for x in tokens)), *state)
        assert isinstance(found, dict)
        row, *carried = found.values()
        rows.append(row)
        state = tuple(carried)
    wanted = exact(*(x.float().double() for x in tokens))
    assert largest_difference(torch.cat(rows, 2), wanted) < 1e-5 * wanted.abs().max()  # float32, sums of 16 products


def require_recurrent(name: str, target: str, folder: Path) -> None:
    """The loop over the tokens is unrolled: its length is fixed."""
    exact = random_attention(name, attention_shape(True))
    module = random_attention(name, attention_shape(True), "recurrent").float()
    tokens = random_tokens(3, 5)
    found = lowered(module, single(*tokens), None, target, folder).run(*single(*tokens))
    assert isinstance(found, Tensor)
    wanted = exact(*(x.float().double() for x in tokens))
    assert largest_difference(found, wanted) < 1e-5 * wanted.abs().max()  # float32, sums of 16 products


@pytest.mark.parametrize("name", ["hedgehog", "flow"])
def test_the_chunked_form_runs_at_every_length(name: str, tmp_path: Path) -> None:
    require_every_length(name, "chunked", "cpu", tmp_path)


@pytest.mark.parametrize("length", [3, 70])
def test_the_length_is_free_beside_a_fixed_batch(length: int) -> None:
    module = random_attention("flow", attention_shape(True)).float()
    free = {name: {2: "length"} for name in FREE}
    tokens = single(*random_tokens(1, length, batch=1))
    program = flowopt.capture(module, tokens, dynamic=free, dims={"length": (1, None)})
    assert program.interface.inputs[0].shape == (1, 2, "length", 8)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["cpu", "tvm"])
@pytest.mark.parametrize("name", KERNELS)
def test_the_chunked_form_of_every_kernel_runs_at_every_length(name: str, target: str, tmp_path: Path) -> None:
    require_every_length(name, "chunked", target, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["cpu", "tvm"])
@pytest.mark.parametrize("name", ["hedgehog", "flow"])
def test_the_parallel_form_runs_at_every_length(name: str, target: str, tmp_path: Path) -> None:
    require_every_length(name, "parallel", target, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["cpu", "tvm"])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("name", ["hedgehog", "flow"])
def test_key_masks_are_inputs_like_others(name: str, is_causal: bool, target: str, tmp_path: Path) -> None:
    require_masks(name, is_causal, target, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["cpu", "tvm"])
@pytest.mark.parametrize("name", ["cosformer", "flow"])
def test_a_step_lowers_with_its_state(name: str, target: str, tmp_path: Path) -> None:
    require_steps(name, target, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cosformer", "flow"])
def test_the_recurrent_form_lowers_with_a_fixed_length(name: str, tmp_path: Path) -> None:
    require_recurrent(name, "cpu", tmp_path)
