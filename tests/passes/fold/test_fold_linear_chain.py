from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from flowopt.passes.fold.fold_linear_chain import FoldLinearChain
from flowopt.pipeline.runner import PipelineRun, run_passes
from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.testing import assert_refuses, assert_rewrites
from tests.passes.fold.layers import CONVOLUTIONS, DTYPES
from tests.passes.programs import Written, canonical, decomposed, normal, randomised, together

X = normal(2, 4, 6)
MOVES: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda y: y,
    "dropout": lambda y: y.clone(),
    "flat": lambda y: y.reshape(-1, y.shape[-1]),
    "unflat": lambda y: y.unflatten(1, (2, 2)),
    "transpose": lambda y: y.transpose(0, 1).contiguous(),
    "there-and-back": lambda y: y.mT.clone().mT,
    "first-token": lambda y: y[:, 0],
    "some-tokens": lambda y: y[:, 1:3].unsqueeze(0).squeeze(0),
    "double": lambda y: y.to(torch.float64).to(y.dtype),
}


def chain(*widths: int, bias: str = "", between: str = "none") -> Written:
    """Linear layers of these widths, those named in ``bias`` by their number with one."""
    layers = [nn.Linear(a, b, bias=str(at) in bias) for at, (a, b) in enumerate(zip(widths, widths[1:], strict=False))]

    def forward(m: Written, x: Tensor) -> Tensor:
        x = m.layers[0](x)
        for layer in m.layers[1:]:
            x = layer(MOVES[between](x))
        return x

    return randomised(Written(forward, layers=nn.ModuleList(layers)))


def assert_folds(
    model: nn.Module | Program, *inputs: Tensor, left: int = 1, sites: int = 1, **options: Any
) -> PipelineRun:
    """The pass fires at ``sites`` sites, and so many layers are left."""
    run = assert_rewrites(FoldLinearChain(), model, inputs, before={}, after={}, **options)
    assert len(run.records[0].applied) == sites
    kinds = ("aten.linear.default", "aten.conv1d.default", "aten.conv2d.default", "aten.conv3d.default")
    assert sum(str(n.target) in kinds for n in run.program.graph.nodes) == left
    return run


@st.composite
def chains(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """Two layers whose product saves work, with an input."""
    first, last = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    middle = draw(st.integers(min(first, last), 6))
    dtype, bias = draw(DTYPES), draw(st.sampled_from(["", "0", "1", "01"]))
    if draw(st.booleans()):
        module: nn.Module = chain(first, middle, last, bias=bias, between=draw(st.sampled_from(sorted(MOVES))))
        return module.to(dtype), normal(draw(st.integers(1, 3)), 4, first, dtype=dtype)
    axes = draw(st.integers(1, 3))
    convolution = CONVOLUTIONS[axes - 1]
    parts = (convolution(first, middle, 1, bias="0" in bias), convolution(middle, last, 1, bias="1" in bias))
    return randomised(nn.Sequential(*parts)).to(dtype), normal(2, first, *[3] * axes, dtype=dtype)


def assert_all_fold(cases: list[tuple[nn.Module, Tensor]]) -> None:
    module, inputs = together(cases)
    assert_folds(module, *inputs, left=len(cases), sites=len(cases))


@settings(deadline=None, derandomize=True, max_examples=5)
@given(st.lists(chains(), min_size=3, max_size=4))
def test_any_chain_becomes_one_layer(cases: list[tuple[nn.Module, Tensor]]) -> None:
    assert_all_fold(cases)


@pytest.mark.slow
@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(chains(), min_size=3, max_size=5))
def test_any_of_many_chains_becomes_one_layer(cases: list[tuple[nn.Module, Tensor]]) -> None:
    assert_all_fold(cases)


@pytest.mark.parametrize("between", ["unflat", "some-tokens"])
def test_folds_through_moves_of_free_sizes(between: str) -> None:
    free = {"x": {0: "batch"} if between == "unflat" else {0: "batch", 1: "tokens"}}
    assert_folds(
        chain(6, 8, 3, bias="01", between=between),
        X,
        dynamic=free,
        dims={"tokens": (3, 64)} if len(free["x"]) > 1 else None,
    )


def test_the_product_is_rounded_once() -> None:
    module = chain(6, 8, 3, bias="01")
    run = assert_folds(module, X)
    first, second = module.layers.double()
    assert torch.equal(run.program.tensors["layers.1.weight_1"], (second.weight @ first.weight).float())
    assert torch.equal(run.program.tensors["layers.1.bias_1"], (second.weight @ first.bias + second.bias).float())


def test_a_bias_of_the_first_layer_alone_moves_to_the_second() -> None:
    run = assert_folds(chain(6, 8, 3, bias="0"), X)
    assert sorted(run.program.tensors) == ["layers.1.bias", "layers.1.weight_1"]


def test_three_layers_become_one() -> None:
    assert_folds(chain(6, 8, 7, 3, bias="12", between="transpose"), X, sites=2)


def test_a_chain_that_pays_only_as_a_whole_is_multiplied_in_one_run() -> None:
    # 8 x 8 of the first two is more than 8 x 2 + 2 x 8; but the last two give 2 x 1, and all three 8 x 1.
    run = assert_folds(chain(8, 2, 8, 1), normal(2, 4, 8))
    assert run.records[0].applied[0].summary == "linear, linear_1, linear_2 -> one layer"


def test_decomposed_layers_fold() -> None:
    assert_folds(canonical(decomposed(chain(6, 8, 3, bias="01"), X)), X)


def test_a_layer_called_twice_keeps_its_weight_for_the_other_call() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        returned: Tensor = m.b(m.a(x)) + m.b(torch.sin(m.c(x)))
        return returned

    module = randomised(Written(forward, a=nn.Linear(6, 8), b=nn.Linear(8, 3), c=nn.Linear(6, 8)))
    run = assert_folds(module, X, left=3)
    assert torch.equal(run.program.tensors["b.weight"], module.b.weight)


# Refusals.


def refuses(code: str, forward: Callable[..., Any], *more: Tensor, **parts: nn.Module | Tensor) -> None:
    layers: dict[str, nn.Module | Tensor] = {"a": nn.Linear(6, 8), "b": nn.Linear(8, 3), "c": nn.Linear(4, 3)}
    assert_refuses(FoldLinearChain(), randomised(Written(forward, **(layers | parts))), (X, *more), code=code)


@pytest.mark.parametrize("widths", [(6, 2, 6), (8, 4, 8)])
def test_refuses_a_factorised_layer(widths: tuple[int, ...]) -> None:
    assert_refuses(FoldLinearChain(), chain(*widths), (normal(2, 4, widths[0]),), code="no-gain")


def test_refuses_a_value_between_that_is_read_elsewhere() -> None:
    def forward(m: Written, x: Tensor) -> list[Tensor]:
        y, z, w = m.a(x), m.a(x), m.a(x).mT
        return [m.b(y), y, m.b(z) + m.b(z.sin()), m.b(w.mT), w.sin()]

    refuses("multiple-readers", forward)


def test_refuses_features_that_are_cut_or_regrouped() -> None:
    def forward(m: Written, x: Tensor) -> list[Tensor]:
        return [
            m.c(m.a(x)[..., :4]),
            m.c(m.a(x).view(2, 4, 2, 4)),
            m.c(m.a(x).mT),
            m.b(m.a(x).transpose(1, 2).reshape(2, 4, 8)),
            m.b(m.a(x)[None].expand(5, -1, -1, -1)),
        ]

    refuses("axis-mismatch", forward)


def test_refuses_convolutions_that_are_not_pointwise() -> None:
    def forward(m: Written, x: Tensor) -> list[Tensor]:
        return [
            m.conv(m.wide(x)),
            m.wide(m.conv(x)),
            m.conv(m.strided(x)),
            m.conv(m.padded(x)),
            m.conv(m.grouped(x)),
        ]

    convolutions = {
        "conv": nn.Conv1d(4, 4, 1),
        "wide": nn.Conv1d(4, 4, 3),
        "strided": nn.Conv1d(4, 4, 1, stride=2),
        "padded": nn.Conv1d(4, 4, 1, padding=1),
        "grouped": nn.Conv1d(4, 4, 1, groups=2),
    }
    refuses("unsupported-spelling", forward, **convolutions)


def test_refuses_a_product_that_outgrows_shared_weights() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        returned: Tensor = m.b(m.a(x)) + m.b(m.a(x).sin()) + m.b(torch.sin(m.a(x)))
        return returned

    module = randomised(Written(forward, a=nn.Linear(6, 8), b=nn.Linear(8, 3)))
    assert_refuses(FoldLinearChain(max_growth=4 * (6 * 3 + 3) - 1), module, (X,), code="grows-too-much")


def test_refuses_layers_whose_parameters_are_inputs() -> None:
    weight = normal(8, 6)
    refuses("not-constant", lambda m, x, w: m.b(nn.functional.linear(x, w)), weight)
    refuses("not-constant", lambda m, x, b: m.b(nn.functional.linear(x, m.a.weight, b)), normal(8))


def test_refuses_a_product_that_would_overflow() -> None:
    module = chain(6, 8, 3)
    for layer in module.layers:
        layer.weight.data.mul_(1e25)
    assert_refuses(FoldLinearChain(), module, (X,), code="not-finite")


def test_layers_with_an_activation_between_are_no_site() -> None:
    module = randomised(Written(lambda m, x: m.b(m.a(x).relu()), a=nn.Linear(6, 8), b=nn.Linear(8, 3)))
    assert run_passes(capture(module, (X,)), [FoldLinearChain()]).records[0].anchors == 0
