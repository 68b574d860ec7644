"""Gains and shifts of every norm into every layer that takes them: convolutions, packed projections, flattened axes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from flowopt.passes.fold.fold_norm_affine import FoldNormAffine
from flowopt.pipeline.runner import run_passes
from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.testing import assert_refuses, assert_rewrites
from tests.passes.programs import Written, normal, randomised

WIDTH = 6
NORMS = ("layer_norm", "rms_norm", "group_norm", "instance_norm")


def bare(program: Program) -> bool:
    """Whether no norm of a program has a gain or a shift."""
    found = [n for name in NORMS for n in program.graph.nodes if getattr(n.target, "_opname", "") == name]
    assert found
    return not any(isinstance(a, fx.Node) for norm in found for a in norm.args[1:])


def folded(module: nn.Module, *inputs: Tensor, layers: int, norm: str = "layer_norm", **more: Any) -> None:
    counts = {f"aten.{norm}": 1}
    run = assert_rewrites(FoldNormAffine(), randomised(module), inputs, before=counts, after=counts, **more)
    assert bare(run.program)
    assert run.records[-1].applied[0].summary == f"folded into {layers} layer{'s' if layers != 1 else ''}"


def channels_last(m: Written, x: Tensor) -> Tensor:
    """As ConvNeXt downsamples."""
    out: Tensor = m.conv(m.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
    return out


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(WIDTH, 8, 2, 2),
        nn.Conv2d(WIDTH, 8, 3, dilation=2, bias=False),
        nn.Conv2d(WIDTH, 9, 3, groups=3),
        nn.Conv2d(WIDTH, WIDTH, 1, groups=WIDTH),
    ],
    ids=["stride", "dilation", "groups", "depthwise"],
)
def test_a_convolution_without_padding_takes_both(conv: nn.Conv2d) -> None:
    module = Written(channels_last, norm=nn.LayerNorm(WIDTH), conv=conv)
    folded(module, normal(2, WIDTH, 7, 5), layers=1, dynamic={"x": {0: "batch"}})


def test_a_padded_convolution_takes_a_gain_alone() -> None:
    conv = nn.Conv2d(WIDTH, 8, 3, padding=1)
    module = Written(channels_last, norm=nn.RMSNorm(WIDTH), conv=conv)
    folded(module, normal(2, WIDTH, 7, 5), layers=1, norm="rms_norm")


@pytest.mark.parametrize("padding", [1, (0, 2), "same"])
def test_a_padded_convolution_refuses_a_shift(padding: Any) -> None:
    module = Written(channels_last, norm=nn.LayerNorm(WIDTH), conv=nn.Conv2d(WIDTH, 8, 3, padding=padding))
    assert_refuses(FoldNormAffine(), randomised(module), (normal(2, WIDTH, 7, 5),), code="padded-reader")


def test_a_transposed_convolution_is_refused() -> None:
    module = Written(channels_last, norm=nn.LayerNorm(WIDTH), conv=nn.ConvTranspose2d(WIDTH, 8, 2, 2))
    assert_refuses(FoldNormAffine(), randomised(module), (normal(2, WIDTH, 4, 3),), code="not-linear-reader")


def test_a_convolution_along_another_axis_is_refused() -> None:
    module = Written(lambda m, x: m.conv(m.norm(x)), norm=nn.LayerNorm(WIDTH), conv=nn.Conv1d(WIDTH, 8, 1))
    assert_refuses(FoldNormAffine(), randomised(module), (normal(2, WIDTH, WIDTH),), code="axis-mismatch")


def test_a_group_norm_before_attention_over_pixels() -> None:
    """As in the attention of a UNet: channels are normalised on axis 1 and contracted on the last one."""

    def forward(m: Written, x: Tensor) -> Tensor:
        y = m.norm(x).flatten(2).transpose(1, 2)
        out: Tensor = nn.functional.scaled_dot_product_attention(m.q(y), m.k(y), m.v(y))
        return out

    linears = {name: nn.Linear(WIDTH, WIDTH) for name in "qkv"}
    module = Written(forward, norm=nn.GroupNorm(3, WIDTH), **linears)
    folded(module, normal(2, WIDTH, 3, 4), layers=3, norm="group_norm", dynamic={"x": {0: "batch"}})


def test_an_instance_norm_of_a_fixed_style() -> None:
    """As in AdaIN with one style: gain and shift are stored, and the convolution behind takes them."""
    module = Written(
        lambda m, x: m.conv(m.norm(x)), norm=nn.InstanceNorm2d(WIDTH, affine=True), conv=nn.Conv2d(WIDTH, 8, 1)
    )
    folded(module, normal(2, WIDTH, 4, 3), layers=1, norm="instance_norm")


def test_a_norm_over_three_axes_before_a_flattened_linear_layer() -> None:
    module = Written(lambda m, x: m.head(m.norm(x).flatten(1)), norm=nn.LayerNorm((3, 2, 4)), head=nn.Linear(24, 5))
    folded(module, normal(7, 3, 2, 4), layers=1, dynamic={"x": {0: "batch"}})


def test_a_norm_over_two_axes_is_refused_where_one_is_contracted() -> None:
    module = Written(lambda m, x: m.head(m.norm(x)), norm=nn.LayerNorm((4, WIDTH)), head=nn.Linear(WIDTH, 5))
    assert_refuses(FoldNormAffine(), randomised(module), (normal(2, 4, WIDTH),), code="axis-mismatch")


def test_heads_that_are_contracted_each_are_refused() -> None:
    module = Written(
        lambda m, x: m.head(m.norm(x).unflatten(-1, (2, 3))), norm=nn.LayerNorm(WIDTH), head=nn.Linear(3, 5)
    )
    assert_refuses(FoldNormAffine(), randomised(module), (normal(2, 4, WIDTH),), code="axis-mismatch")


def test_heads_that_are_contracted_again_together() -> None:
    """Features cut into heads, put in another order, and contracted as they stand."""

    def forward(m: Written, x: Tensor) -> Tensor:
        heads = m.norm(x).unflatten(-1, (2, 3)).transpose(-1, -2)
        out: Tensor = m.head(heads.flatten(-2))
        return out

    folded(Written(forward, norm=nn.LayerNorm(WIDTH), head=nn.Linear(WIDTH, 5)), normal(2, 4, WIDTH), layers=1)


def test_a_part_of_the_features() -> None:
    module = Written(
        lambda m, x: m.first(m.norm(x)[..., :2]) + m.rest(m.norm(x)[..., 2:]),
        norm=nn.LayerNorm(WIDTH),
        first=nn.Linear(2, 5),
        rest=nn.Linear(WIDTH - 2, 5),
    )
    counts = {"aten.layer_norm": 2}
    run = assert_rewrites(FoldNormAffine(), randomised(module), (normal(2, 4, WIDTH),), before=counts, after=counts)
    assert bare(run.program)


@pytest.mark.parametrize("kind", ["packed", "separate", "no bias", "cross"])
def test_multihead_attention(kind: str) -> None:
    options: dict[str, Any] = {"bias": kind != "no bias", "batch_first": True}
    if kind == "separate":
        options |= {"kdim": WIDTH + 2, "vdim": WIDTH + 4}
    attention = nn.MultiheadAttention(WIDTH, 2, **options)

    def forward(m: Written, x: Tensor, *more: Tensor) -> Tensor:
        y = m.norm(x)
        keys, values = more if kind == "separate" else (more[0],) * 2 if kind == "cross" else (y, y)
        out: Tensor = m.attention(y, keys, values, need_weights=False)[0]
        return out

    more = {
        "separate": (normal(2, 5, WIDTH + 2), normal(2, 5, WIDTH + 4)),
        "cross": (normal(2, 5, WIDTH),),
    }.get(kind, ())
    module = Written(forward, norm=nn.LayerNorm(WIDTH), attention=attention)
    program = capture(randomised(module), (normal(2, 4, WIDTH), *more))
    run = run_passes(program, [FoldNormAffine()])
    assert run.records[0].applied and bare(run.program)
    inputs = (normal(2, 4, WIDTH, seed=1), *more)
    torch.testing.assert_close(run.program.run(*inputs), program.run(*inputs), rtol=1e-5, atol=1e-5)


def test_a_router_and_every_expert() -> None:
    """All experts are computed and weighed, as an export without data-dependent shapes does."""

    def forward(m: Written, x: Tensor) -> Tensor:
        y = m.norm(x)
        weights = m.router(y).softmax(-1)
        out: Tensor = sum(weights[..., i : i + 1] * expert(y) for i, expert in enumerate(m.experts))
        return out

    experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
    module = Written(forward, norm=nn.LayerNorm(WIDTH), router=nn.Linear(WIDTH, 3), experts=experts)
    folded(module, normal(2, 4, WIDTH), layers=4)


def test_a_layer_that_is_shared_by_two_norms_gets_two_weights() -> None:
    """As ALBERT shares its blocks: each call has the gain of its own norm."""

    def forward(m: Written, x: Tensor) -> Tensor:
        out: Tensor = m.shared(m.second(m.shared(m.first(x)).tanh()))
        return out

    module = Written(forward, first=nn.LayerNorm(WIDTH), second=nn.LayerNorm(WIDTH), shared=nn.Linear(WIDTH, WIDTH))
    counts = {"aten.layer_norm": 2}
    run = assert_rewrites(FoldNormAffine(), randomised(module), (normal(2, 4, WIDTH),), before=counts, after=counts)
    assert bare(run.program)


_CONVOLUTIONS: dict[int, Callable[..., nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    axes=st.integers(1, 3),
    groups=st.sampled_from([1, 2]),
    kernel=st.integers(1, 2),
    stride=st.integers(1, 2),
    bias=st.booleans(),
    padding=st.integers(0, 1),
    shift=st.booleans(),
)
def test_any_convolution(
    axes: int, groups: int, kernel: int, stride: int, bias: bool, padding: int, shift: bool
) -> None:
    conv = _CONVOLUTIONS[axes](4, 6, kernel, stride, padding, groups=groups, bias=bias)
    norm = nn.GroupNorm(2, 4)
    module = randomised(Written(lambda m, x: m.conv(m.norm(x)), norm=norm, conv=conv))
    if not shift:
        norm.register_parameter("bias", None)
    x = normal(2, 4, *[4] * axes)
    if padding and shift:
        assert_refuses(FoldNormAffine(), module, (x,), code="padded-reader")
    else:
        counts = {"aten.group_norm": 1}
        run = assert_rewrites(FoldNormAffine(), module, (x,), before=counts, after=counts)
        assert bare(run.program)
