"""Convolutions on the CPU against torch's in float64, at the edges of tiles, groups and images."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.lowering.tvm.image_kernels import kernels, relative_error, tensor

# Sums of up to 1,200 products in float32, in another order than torch's.
BOUND = 2e-6


def require_near(
    data: Tensor | Sequence[Tensor],
    weight: Tensor,
    free: Sequence[int] = (),
    processor: str | None = None,
    **options: Any,
) -> None:
    """A convolution of any rank, plain or transposed, is scheduled and as near to float64 as float32 sums are."""
    from tvm import relax

    rank, transposed = weight.dim() - 2, bool(options.pop("transposed", False))
    name = f"conv{rank}d" + ("_transpose" if transposed else "")
    examples = [data] if isinstance(data, Tensor) else data
    found = kernels(getattr(relax.op.nn, name), (examples[0], weight), free, processor, **options)
    assert found.scheduled[name] == "schedule_convolution"
    arguments = {{"strides": "stride"}.get(key, key): value for key, value in options.items()}
    reference = getattr(torch, f"conv_transpose{rank}d" if transposed else name)
    for example in examples:
        wanted = reference(example.double(), weight.double(), **arguments)
        assert relative_error(found(example, weight), wanted) < BOUND


@pytest.fixture(autouse=True)
def _tvm() -> None:
    pytest.importorskip("tvm")


@pytest.mark.parametrize("channels", [5, 31, 32, 33])
def test_output_channels_need_not_fill_vectors(channels: int) -> None:
    require_near(tensor(0, 2, 6, 9, 11), tensor(1, channels, 6, 3, 3), padding=1)


@pytest.mark.parametrize("channels", [1, 3])
def test_few_output_channels_are_summed_along_rows(channels: int) -> None:
    require_near(tensor(0, 2, 6, 9, 37), tensor(1, channels, 6, 3, 3), padding=1)


@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        ((7, 7), {"strides": 2, "padding": 3}),
        ((3, 5), {"strides": (1, 2), "padding": (2, 0), "dilation": (2, 1)}),
        ((1, 1), {}),
        ((1, 1), {"strides": 2}),
        ((4, 4), {"strides": 4}),
    ],
)
def test_kernels_strides_paddings_and_dilations(kernel: tuple[int, int], options: dict[str, Any]) -> None:
    require_near(tensor(0, 1, 5, 21, 19), tensor(1, 20, 5, *kernel), **options)


def test_padding_may_differ_on_each_side() -> None:
    from tvm import relax

    data, weight = tensor(0, 1, 4, 10, 9), tensor(1, 16, 4, 3, 3)
    found = kernels(relax.op.nn.conv2d, (data, weight), padding=(0, 2, 1, 3))
    padded = torch.nn.functional.pad(data.double(), (2, 3, 0, 1))
    assert relative_error(found(data, weight), torch.conv2d(padded, weight.double())) < BOUND


@pytest.mark.parametrize(("groups", "members"), [(2, 20), (4, 16), (3, 7)])
def test_groups_are_convolved_by_themselves(groups: int, members: int) -> None:
    weight = tensor(1, groups * members, 4, 3, 3)
    require_near(tensor(0, 2, groups * 4, 8, 9), weight, padding=1, groups=groups)


@pytest.mark.parametrize("multiplier", [1, 2])
@pytest.mark.parametrize("options", [{"padding": 1}, {"strides": 2, "padding": 1}, {"dilation": 2, "padding": 2}])
def test_depthwise_convolutions(multiplier: int, options: dict[str, Any]) -> None:
    require_near(tensor(0, 2, 9, 14, 35), tensor(1, 9 * multiplier, 1, 3, 3), groups=9, **options)


@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        (2, {"strides": 2}),
        (3, {"strides": 2, "padding": 1, "output_padding": 1}),
        (4, {"strides": 3, "padding": 2, "groups": 2}),
        (2, {"strides": 3}),
        (5, {}),
        (7, {"strides": 5, "padding": 2}),
    ],
)
def test_transposed_convolutions(kernel: int, options: dict[str, Any]) -> None:
    require_near(tensor(0, 2, 8, 6, 7), tensor(1, 8, 9, kernel, kernel), transposed=True, **options)


def test_one_and_three_dimensions() -> None:
    require_near(tensor(0, 2, 5, 41), tensor(1, 18, 5, 3), strides=2, padding=1)
    require_near(tensor(0, 2, 8, 11), tensor(1, 8, 6, 4), transposed=True, strides=2, padding=1)
    require_near(tensor(0, 1, 3, 5, 6, 7), tensor(1, 8, 3, 3, 3, 3), padding=1)


@pytest.mark.parametrize(
    ("weight", "options"),
    [
        ((18, 6, 3, 3), {"strides": 2, "padding": 1}),
        ((18, 6, 1, 1), {}),
        ((6, 1, 3, 3), {"padding": 1, "groups": 6}),
        ((6, 18, 3, 3), {"strides": 2, "padding": 1, "transposed": True}),
    ],
)
def test_free_batch_and_free_image_size(weight: tuple[int, ...], options: dict[str, Any]) -> None:
    data = [tensor(0, 1, 6, 1, 1), tensor(0, 3, 6, 16, 8), tensor(0, 2, 6, 15, 21)]
    require_near(data, tensor(1, *weight), free=(0, 2, 3), **options)


def test_kernels_of_a_free_batch_know_that_their_arguments_do_not_overlap() -> None:
    from tvm import relax

    found = kernels(relax.op.nn.conv2d, (tensor(0, 1, 8, 14, 14), tensor(1, 32, 8, 3, 3)), free=(0,), padding=1)
    text = found.made.imports[0].inspect_source("ll")
    entry = next(line for line in text.splitlines() if line.startswith("define") and "__tvm_ffi_conv2d(" in line)
    assert "noalias" in entry


@pytest.mark.parametrize("processor", ["core-avx2", "x86-64"])
def test_processors_with_narrower_registers(processor: str) -> None:
    require_near(tensor(0, 1, 6, 9, 11), tensor(1, 20, 6, 3, 3), processor=processor, padding=1)
    require_near(tensor(0, 1, 6, 9, 11), tensor(1, 6, 1, 3, 3), processor=processor, padding=1, groups=6)


def residual_block(data: Any, weight: Any, bias: Any, residual: Any) -> Any:
    from tvm import relax

    summed = relax.op.add(relax.op.add(relax.op.nn.conv2d(data, weight, padding=1), bias), residual)
    return relax.op.nn.relu(summed)


def test_bias_residual_and_activation_are_one_kernel_with_the_convolution() -> None:
    data, weight = tensor(0, 2, 6, 9, 11), tensor(1, 33, 6, 3, 3)
    bias, residual = tensor(2, 1, 33, 1, 1), tensor(3, 2, 33, 9, 11)
    found = kernels(residual_block, (data, weight, bias, residual))
    assert len(found.scheduled) == 2  # with the packing of the weights
    wanted = torch.conv2d(data.double(), weight.double(), padding=1) + bias.double() + residual.double()
    assert relative_error(found(data, weight, bias, residual), wanted.relu()) < BOUND


def gated(data: Any, weight: Any, image: Any) -> Any:
    from tvm import relax

    return relax.op.multiply(relax.op.sigmoid(relax.op.nn.conv2d(data, weight)), image)


def test_a_convolution_that_is_broadcast_is_computed_once() -> None:
    data, weight, image = tensor(0, 2, 6, 1, 1), tensor(1, 8, 6, 1, 1), tensor(2, 2, 8, 5, 7)
    found = kernels(gated, (data, weight, image))
    wanted = torch.conv2d(data.double(), weight.double()).sigmoid() * image.double()
    assert relative_error(found(data, weight, image), wanted) < BOUND


@pytest.mark.parametrize(
    ("dtype", "bound"),
    [(torch.float16, 2**-11), (torch.float64, 1e-14)],  # one rounding to half precision
)
def test_other_precisions_round_once(dtype: torch.dtype, bound: float) -> None:
    from tvm import relax

    data, weight = tensor(0, 1, 64, 9, 11).to(dtype), tensor(1, 20, 64, 3, 3).to(dtype)
    found = kernels(relax.op.nn.conv2d, (data, weight), padding=1)
    assert found.scheduled["conv2d"] == "schedule_convolution"
    assert relative_error(found(data, weight), torch.conv2d(data.double(), weight.double(), padding=1)) <= bound


def test_a_transposed_convolution_with_dilation_is_left_to_the_default() -> None:
    from tvm import relax

    data, weight = tensor(0, 1, 4, 5, 6), tensor(1, 4, 6, 3, 3)
    found = kernels(relax.op.nn.conv2d_transpose, (data, weight), dilation=(2, 2))
    assert found.scheduled["conv2d_transpose"] == ""
    wanted = torch.conv_transpose2d(data.double(), weight.double(), dilation=2)
    assert relative_error(found(data, weight), wanted) < BOUND
