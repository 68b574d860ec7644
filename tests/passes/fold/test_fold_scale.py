from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from flowopt.passes.fold.fold_scale import FoldScale
from flowopt.pipeline.runner import PipelineRun
from flowopt.program.program import Program
from flowopt.testing import assert_rewrites
from tests.passes.fold.scales import HEADS, WIDTH, attention, factors, scaled, scaled_layers
from tests.passes.programs import Written, canonical, decomposed, normal, randomised, together

X = normal(2, 5, WIDTH)
IMAGE = normal(2, 4, 5, 5)
SCALES = ("aten.mul.Tensor", "aten.mul.Scalar", "aten.div.Tensor")


def assert_folds(
    model: nn.Module | Program, *inputs: Tensor, scales: int = 1, left: int = 0, **options: Any
) -> PipelineRun:
    """The pass fires at ``scales`` sites, and so many products and quotients fewer are left."""
    run = assert_rewrites(FoldScale(), model, inputs, before={}, after={}, **options)
    (record,) = run.records
    assert len(record.applied) == scales
    assert sum(str(n.target) in SCALES for n in run.program.graph.nodes) == left
    return run


def summary(run: PipelineRun) -> str:
    return run.records[0].applied[0].summary


# Right for every layer, scale and side.


def assert_all_fold(cases: list[tuple[nn.Module, Tensor]]) -> None:
    module, inputs = together(cases)
    assert_folds(module, *inputs, scales=len(cases))


@settings(deadline=None, derandomize=True, max_examples=5)
@given(st.lists(scaled_layers(), min_size=3, max_size=4))
def test_any_scale_folds_into_any_layer(cases: list[tuple[nn.Module, Tensor]]) -> None:
    assert_all_fold(cases)


@pytest.mark.slow
@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(scaled_layers(), min_size=3, max_size=5))
def test_any_of_many_scales_folds_into_any_layer(cases: list[tuple[nn.Module, Tensor]]) -> None:
    assert_all_fold(cases)


def test_a_power_of_two_changes_no_bit() -> None:
    module = scaled(nn.Linear(WIDTH, 5), 0.25, behind=False, divide=False)
    assert_folds(module, X, max_ulp=0)  # 2**-2 only moves exponents


def test_scaled_parameters_are_rounded_once() -> None:
    scale = factors(5)
    module = scaled(nn.Linear(WIDTH, 5), scale, behind=False, divide=True)
    run = assert_folds(module, X)
    layer = module.layer.double()
    assert torch.equal(run.program.tensors["layer.weight_1"], (layer.weight / scale.double()[:, None]).float())
    assert torch.equal(run.program.tensors["layer.bias_1"], (layer.bias / scale.double()).float())


def test_a_scale_between_two_layers_goes_to_the_one_before() -> None:
    module = randomised(Written(lambda m, x: m.b(m.a(x) * 3.0), a=nn.Linear(WIDTH, 5), b=nn.Linear(5, 4)))
    assert summary(assert_folds(module, X)) == "folded into the outputs of linear"


def test_a_scale_that_the_layer_before_cannot_take_goes_to_those_behind() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        y = m.a(x)
        z = y * m.scale
        returned: Tensor = m.b(z) + m.c(z[..., 1:3]) + y.sum()
        return returned

    parts = {"a": nn.Linear(WIDTH, 5), "b": nn.Linear(5, 4), "c": nn.Linear(2, 4)}
    run = assert_folds(randomised(Written(forward, scale=factors(5), **parts)), X)
    assert summary(run) == "folded into the inputs of linear_1, linear_2"


def test_layer_scale_of_a_residual_block_folds() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        inner = m.depthwise(x).permute(0, 2, 3, 1)
        returned: Tensor = x + (m.fc(F.gelu(inner)) * m.scale).permute(0, 3, 1, 2)
        return returned

    parts = {"depthwise": nn.Conv2d(4, 4, 3, padding=1, groups=4), "fc": nn.Linear(4, 4)}
    assert_folds(randomised(Written(forward, scale=factors(4), **parts)), IMAGE)


def test_factors_over_channels_fold_where_the_width_has_the_same_size() -> None:
    # Row 11 of the known miscompiles: (C,) goes along the width, (C, 1, 1) along the channels.
    module = randomised(Written(lambda m, x: m.conv(x) * m.scale, conv=nn.Conv2d(4, 5, 1), scale=factors(5, 1, 1)))
    assert_folds(module, IMAGE)


def test_a_factor_for_each_head_folds_through_the_reshape() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        heads = m.fc(x).view(2, 5, HEADS, -1).transpose(1, 2)
        returned: Tensor = heads * m.scale
        return returned

    module = randomised(Written(forward, fc=nn.Linear(WIDTH, WIDTH), scale=factors(HEADS, 1, 1)))
    assert_folds(module, X)


def test_a_scaled_sum_folds_into_all_its_layers() -> None:
    module = Written(lambda m, x: (m.a(x) - m.b(x.flip(0))) / 3.0, a=nn.Linear(WIDTH, 5), b=nn.Linear(WIDTH, 5))
    assert summary(assert_folds(randomised(module), X)) == "folded into the outputs of linear, linear_1"


def test_a_scaled_gate_folds_into_the_last_factor_that_is_a_layer() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        gate, up = m.fc(x).chunk(2, -1)
        returned: Tensor = F.silu(gate) * up * 3.0
        return returned

    assert_folds(randomised(Written(forward, fc=nn.Linear(WIDTH, 8))), X, left=1)


def test_a_layer_called_twice_keeps_its_weight_for_the_other_call() -> None:
    module = randomised(Written(lambda m, x: m.fc(x) * 3.0 - m.fc(x.flip(0)), fc=nn.Linear(WIDTH, 5)))
    run = assert_folds(module, X)
    assert torch.equal(run.program.tensors["fc.weight"], module.fc.weight)


# Embeddings.


def test_scaled_embeddings_fold_into_the_table() -> None:
    module = randomised(Written(lambda m, ids: m.table(ids) * 6**0.5, table=nn.Embedding(7, 6, padding_idx=0)))
    assert_folds(module, torch.arange(6).reshape(2, 3))


def test_a_tied_table_is_copied_and_the_growth_counted() -> None:
    def forward(m: Written, ids: Tensor) -> Tensor:
        returned: Tensor = m.head(torch.tanh(m.table(ids) * 6**0.5))
        return returned

    module = randomised(Written(forward, table=nn.Embedding(7, 6), head=nn.Linear(6, 7, bias=False)))
    module.head.weight = module.table.weight
    run = assert_folds(module, torch.arange(6).reshape(2, 3))
    assert run.records[0].added_bytes == 7 * 6 * 4


# Attention.


@pytest.mark.parametrize("style", ["split", "unbind", "per-head", "select"])
def test_the_scale_of_attention_folds_into_the_query_rows(style: str) -> None:
    module = attention(style)
    run = assert_folds(module, X)
    new, old = run.program.tensors["qkv.bias_1"], module.qkv.bias
    size = WIDTH // HEADS
    query = [i for i in range(3 * WIDTH) if (i % (3 * size) < size if style == "per-head" else i < WIDTH)]
    assert (new != old).nonzero().flatten().tolist() == query


def test_a_small_weight_of_half_precision_does_not_stop_the_fold() -> None:
    module = attention("split")
    module.qkv.weight.data[0, 0] = 7e-5  # scaled, it is below the smallest normal number of float16
    assert_folds(module.half(), X.half())


def test_an_early_scale_of_the_query_folds() -> None:
    assert_folds(attention(early=True, bias=False), X)


def test_the_scale_folds_through_rotary_positions() -> None:
    run = assert_folds(attention("unbind", rotary=True), X, left=4, dynamic={"x": {0: "batch", 1: "tokens"}})
    assert summary(run) == "folded into the outputs of linear"


def test_both_scales_of_decomposed_attention_fold() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        q, kv = m.q(x), m.kv(x)
        k, v = kv.view(2, 5, 2, 2, -1).permute(2, 0, 3, 1, 4).unbind(0)
        heads = q.view(2, 5, HEADS, -1).transpose(1, 2)
        y = F.scaled_dot_product_attention(heads, k, v, enable_gqa=True)
        returned: Tensor = m.out(y.transpose(1, 2).flatten(2))
        return returned

    parts = {name: nn.Linear(WIDTH, WIDTH) for name in ("q", "kv", "out")}
    assert_folds(canonical(decomposed(randomised(Written(forward, **parts)), X)), scales=2)


def test_sizes_of_what_is_replaced_are_read_anew() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        y = m.fc(x).transpose(0, 1)
        z = y * 3.0
        returned: Tensor = z.reshape(y.shape[0] * y.shape[1], -1)
        return returned

    module = randomised(Written(forward, fc=nn.Linear(WIDTH, 5)))
    assert_folds(module, X, dynamic={"x": {0: "batch", 1: "tokens"}})


def test_growth_is_an_option_of_the_text_form() -> None:
    assert FoldScale(max_growth=4).text() == "fold-scale:max_growth=4"
