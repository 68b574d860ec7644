from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from flowopt.ir.text import operator_census
from flowopt.passes.cleanup.canonicalize_aten import CanonicalizeAten
from flowopt.passes.cleanup.eliminate_no_ops import EliminateNoOps
from flowopt.passes.fold.fold_constants import FoldConstants
from flowopt.passes.fold.fold_parametrizations import FoldParametrizations
from flowopt.pipeline.runner import run_passes
from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.testing import assert_rewrites
from flowopt.verification.verify_passes import VerifyPasses
from tests.passes.fold.adapters import Conv1D, Dora, Lora, LoraEmbedding, lora_convolution, lora_linear
from tests.passes.programs import Written, decomposed, normal, randomised

X = normal(2, 3, 6)
ONE_LINEAR = {"aten.linear": 1, "aten.add.Tensor": 0, "aten.mul.Tensor": 0}


def prepared(program: Program) -> Program:
    """After what comes before this pass in a preset."""
    return run_passes(program, [CanonicalizeAten(), EliminateNoOps(), FoldConstants()]).program


def written(forward: Any, **parts: nn.Module | Tensor) -> Written:
    return randomised(Written(forward, **parts))


def pair(inputs: int = 6, outputs: int = 5, rank: int = 2, bias: bool = False) -> dict[str, nn.Module]:
    return {"down": nn.Linear(inputs, rank, bias=bias), "up": nn.Linear(rank, outputs, bias=bias)}


def test_an_adapter_folds_into_its_layer() -> None:
    module = randomised(lora_linear())
    run = assert_rewrites(FoldParametrizations(), module, (X,), before={"aten.linear": 3}, after=ONE_LINEAR)
    assert run.records[0].applied[0].summary == "3 layers of x -> one like linear"
    base, down, up = (module.get_parameter(f"{name}.weight") for name in ("base", "down.0", "up.0"))
    wanted = base.double() + 0.5 * (up.double() @ down.double())
    folded = [t for t in run.program.tensors.values() if t.shape == base.shape]
    assert [torch.equal(t, wanted.float()) for t in folded] == [True]


def test_several_adapters_add_up_in_one_rewrite() -> None:
    module = randomised(lora_linear(ranks=(1, 2, 1)))
    run = assert_rewrites(FoldParametrizations(), module, (X,), before={"aten.linear": 7}, after=ONE_LINEAR)
    assert len(run.records[0].applied) == 1


def test_adapters_that_share_a_copy_of_the_input_fold_with_the_layer_that_reads_the_input() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        y = x.clone()
        added: Tensor = m.base(x) + m.up(m.down(y)) + m.up(m.other(y))
        return added

    module = written(forward, base=nn.Linear(6, 5), other=nn.Linear(6, 2), **pair())
    assert_rewrites(FoldParametrizations(), module, (X,), before={"aten.linear": 5}, after=ONE_LINEAR)


def test_layers_whose_adapters_share_a_copy_of_the_input() -> None:
    """Query and value read one value, and so do their adapters, after dropout that is a mere copy now."""

    def forward(m: Written, x: Tensor) -> list[Tensor]:
        y = x.clone() * 0.5
        return [m.base(x) + m.up(m.down(y)), m.other(x) + m.up(m.down(y * 3)), y]

    module = written(forward, base=nn.Linear(6, 5), other=nn.Linear(6, 5), **pair())
    assert_rewrites(FoldParametrizations(), module, (X,), before={"aten.linear": 6}, after={"aten.linear": 2})


def test_free_sizes_stay_free() -> None:
    run = assert_rewrites(
        FoldParametrizations(),
        randomised(lora_linear()),
        (X,),
        before={"aten.linear": 3},
        after=ONE_LINEAR,
        dynamic={"x": {0: "batch", 1: "length"}},
    )
    assert [d.name for d in run.program.dims] == ["batch", "length"]


def test_a_scale_or_shift_anywhere() -> None:
    forms: list[Any] = [
        lambda m, x: m.base(x) + 0.5 * m.up(m.down(x)),
        lambda m, x: m.up(m.down(x) * 0.5) + m.base(x),
        lambda m, x: m.base(x) + m.up(m.down(x * 0.5)),
        lambda m, x: m.base(x) + m.up(m.down(x)) / 3,
        lambda m, x: m.base(x) + m.scale * m.up(m.down(x)),
        lambda m, x: torch.add(m.base(x), m.up(m.down(x)), alpha=2),
        lambda m, x: m.base(x) - m.up(m.down(x)),
        lambda m, x: m.base(x) + -m.up(m.down(x)),
        lambda m, x: m.base(x) + m.up(m.down(x)) * m.per_output,
        lambda m, x: m.base(x) + m.up(m.down(x * m.per_input)),
        lambda m, x: m.base(x) + m.up(m.down(x - 1.5)),
        lambda m, x: m.base(x) + (m.up(m.down(x)) + m.per_output) * 0.5,
        lambda m, x: m.base(x) + m.up(m.down(x).reshape(6, 2)).reshape(2, 3, 5),
        lambda m, x: m.base(x.reshape(6, 6)).reshape(2, 3, 5) + m.up(m.down(x)),
        lambda m, x: m.base(x) + m.up(m.scale - m.down(x)),
    ]
    module = written(
        lambda m, x: [form(m, x) for form in forms],
        base=nn.Linear(6, 5),
        scale=torch.tensor(0.7),
        per_output=nn.Parameter(torch.ones(5)),
        per_input=nn.Parameter(torch.ones(6)),
        **pair(bias=True),
    )
    run = run_passes(capture(module, (X,)), [FoldParametrizations()], [VerifyPasses()])
    assert run.records[0].outcome == "kept", run.records[0]
    assert operator_census(run.program.graph) == {"aten.linear": len(forms)}


def test_dora_after_its_magnitude_is_folded() -> None:
    program = prepared(capture(randomised(Dora(6, 5, 2)), (X,)))
    assert_rewrites(FoldParametrizations(), program, before={"aten.linear": 3, "aten.sub.Tensor": 1}, after=ONE_LINEAR)


def test_dora_that_computes_the_base_again() -> None:
    """As it does where dropout stands between: the base's product without a bias is a layer of its own."""

    def forward(m: Written, x: Tensor) -> Tensor:
        change = (m.magnitude - 1) * F.linear(x, m.base.weight) + m.magnitude * m.up(m.down(x)) * 0.5
        added: Tensor = m.base(x) + change
        return added

    module = written(forward, base=nn.Linear(6, 5), magnitude=nn.Parameter(torch.ones(1, 5)), **pair())
    program = prepared(capture(module, (X,)))
    assert_rewrites(FoldParametrizations(), program, before={"aten.linear": 4}, after=ONE_LINEAR)


def test_an_adapter_beside_gpt2s_linear_layer() -> None:
    module = Lora(Conv1D(6, 5), [(nn.Linear(6, 2, bias=False), nn.Linear(2, 5, bias=False))])
    program = prepared(capture(randomised(module), (X,)))
    assert_rewrites(FoldParametrizations(), program, before={"aten.linear": 3}, after=ONE_LINEAR | {"aten.reshape": 0})


def test_an_adapter_in_a_decomposed_program() -> None:
    program = prepared(decomposed(randomised(lora_linear()), X))
    assert_rewrites(FoldParametrizations(), program, before={"aten.linear": 3}, after=ONE_LINEAR)


@pytest.mark.parametrize("sliding", [{}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": 2}])
def test_an_adapter_of_a_convolution(sliding: dict[str, int]) -> None:
    module = randomised(lora_convolution(**sliding))
    assert_rewrites(
        FoldParametrizations(),
        module,
        (normal(2, 3, 9, 7),),
        before={"aten.conv2d": 3},
        after={"aten.conv2d": 1, "aten.add.Tensor": 0},
    )


def test_chains_of_convolutions() -> None:
    forms: list[Any] = [
        # Pointwise first; three in a chain; a padding as text, and the same one in numbers; a bias of each channel.
        lambda m, x: m.base(x) + m.wide(m.point(x)),
        lambda m, x: m.base(x) + m.last(m.wide_thin(m.point(x))),
        lambda m, x: m.base(x) + F.conv1d(F.conv1d(x, m.thin, padding="same"), m.last.weight),
        lambda m, x: m.base(x) + m.last(F.conv1d(x, m.thin, padding=1)) * m.per_channel + 1.5,
        lambda m, x: m.base(x) + m.last_with_bias(F.conv1d(x, m.thin, padding=1)),
        lambda m, x: m.base(x) + F.conv1d(m.point(x) * m.per_rank, m.up, padding=1),
    ]
    module = written(
        lambda m, x: [form(m, x) for form in forms],
        base=nn.Conv1d(3, 5, 3, padding=1),
        point=nn.Conv1d(3, 2, 1, bias=False),
        wide=nn.Conv1d(2, 5, 3, padding=1),
        wide_thin=nn.Conv1d(2, 2, 3, padding=1),
        last=nn.Conv1d(2, 5, 1, bias=False),
        last_with_bias=nn.Conv1d(2, 5, 1),
        thin=nn.Parameter(normal(2, 3, 3)),
        up=nn.Parameter(normal(5, 2, 3)),
        per_channel=nn.Parameter(torch.ones(1, 5, 1)),
        per_rank=nn.Parameter(torch.ones(2, 1)),
    )
    run = run_passes(capture(module, (normal(2, 3, 9),)), [FoldParametrizations()], [VerifyPasses()])
    assert run.records[0].outcome == "kept", run.records[0]
    assert operator_census(run.program.graph)["aten.conv1d"] == len(forms)


def test_a_padding_that_only_text_can_say() -> None:
    """A kernel of two points is padded on one side."""

    def forward(m: Written, x: Tensor) -> Tensor:
        added: Tensor = m.base(x) + m.up(m.down(x))
        return added

    layers = {"base": nn.Conv1d(3, 5, 2, padding="same"), "down": nn.Conv1d(3, 2, 2, padding="same", bias=False)}
    module = written(forward, **layers, up=nn.Conv1d(2, 5, 1))
    assert_rewrites(
        FoldParametrizations(),
        module,
        (normal(2, 3, 6),),
        before={"aten.conv1d.padding": 2, "aten.conv1d": 1},
        after={"aten.conv1d.padding": 1, "aten.conv1d": 0},
    )


def test_two_grouped_convolutions_become_one() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        added: Tensor = m.one(x) + m.two(x * 0.5)
        return added

    module = written(forward, one=nn.Conv2d(4, 6, 3, groups=2), two=nn.Conv2d(4, 6, 3, groups=2, bias=False))
    assert_rewrites(
        FoldParametrizations(), module, (normal(2, 4, 5, 5),), before={"aten.conv2d": 2}, after={"aten.conv2d": 1}
    )


def test_an_adapter_of_an_embedding() -> None:
    program = prepared(capture(randomised(LoraEmbedding(7, 5, 2)), (torch.tensor([[0, 3, 6], [1, 1, 2]]),)))
    assert_rewrites(
        FoldParametrizations(),
        program,
        before={"aten.embedding": 2, "aten.linear": 1},
        after={"aten.embedding": 1, "aten.linear": 0, "aten.add.Tensor": 0},
    )


def test_adapters_of_a_wider_dtype() -> None:
    """The sum is cast back to the base's dtype, and the one layer needs no cast."""
    module = randomised(lora_linear(48, 40, (4,)))
    module.base.bfloat16()
    assert_rewrites(
        FoldParametrizations(),
        module,
        (normal(2, 3, 48).bfloat16(),),
        before={"aten.linear": 3, "aten._to_copy": 2},
        after={"aten.linear": 1, "aten._to_copy": 0},
    )


def test_a_sum_that_is_read_in_the_wider_dtype_is_cast_to_it() -> None:
    module = written(lambda m, x: m.base(x) + m.up(m.down(x.float())), base=nn.Linear(48, 40), **pair(48, 40, 4))
    module.base.bfloat16()
    run = assert_rewrites(
        FoldParametrizations(),
        module,
        (normal(3, 48).bfloat16(),),
        before={"aten.linear": 3, "aten._to_copy": 1},
        after={"aten.linear": 1, "aten._to_copy": 1},
    )
    assert run.program.outputs[0].dtype is torch.float32


def test_other_addends_stay() -> None:
    def forward(m: Written, x: Tensor, y: Tensor) -> Tensor:
        added: Tensor = (y - m.base(x)) - torch.add(m.up(m.down(x)), y.abs(), alpha=3) + m.table
        return added

    module = written(forward, base=nn.Linear(6, 5), table=nn.Parameter(torch.ones(3, 5)), **pair())
    run = assert_rewrites(
        FoldParametrizations(),
        module,
        (X, normal(2, 3, 5)),
        before={"aten.linear": 3, "aten.add.Tensor": 2, "aten.sub.Tensor": 2},
        after={"aten.linear": 1, "aten.add.Tensor": 2, "aten.sub.Tensor": 1},
    )
    assert run.records[0].anchors == 1


def test_a_gated_adapter_stays_beside_those_that_fold() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        added: Tensor = m.base(x) + m.up(m.down(x)) + m.other(x) * x.mean()
        return added

    module = written(forward, base=nn.Linear(6, 5), other=nn.Linear(6, 5), **pair())
    assert_rewrites(FoldParametrizations(), module, (X,), before={"aten.linear": 4}, after={"aten.linear": 2})


def test_a_layer_that_is_added_twice_is_added_twice() -> None:
    module = written(lambda m, x: (lambda y: y + y - m.up(m.down(x)))(m.base(x)), base=nn.Linear(6, 5), **pair())
    assert_rewrites(FoldParametrizations(), module, (X,), before={"aten.linear": 3}, after=ONE_LINEAR)


def test_a_layer_of_a_layer_and_that_layer_are_one() -> None:
    module = written(lambda m, x: (lambda h: h + m.two(h))(m.one(x)), one=nn.Linear(6, 5), two=nn.Linear(5, 5))
    assert_rewrites(FoldParametrizations(), module, (X,), before={"aten.linear": 2}, after=ONE_LINEAR)


def test_a_layer_after_a_residual_sum_of_layers() -> None:
    parts = {name: nn.Linear(6, 6) for name in ("fc", "out", "inner")}
    module = written(lambda m, x: m.fc(x) + m.out(x + m.inner(x)), **parts)
    assert_rewrites(FoldParametrizations(), module, (X,), before={"aten.linear": 3}, after=ONE_LINEAR)


def test_a_base_that_is_called_twice_keeps_its_weight_for_the_other_call() -> None:
    module = written(lambda m, x: [m.base(x) + m.up(m.down(x)), m.base(x * x)], base=nn.Linear(6, 5), **pair())
    run = assert_rewrites(FoldParametrizations(), module, (X,), before={"aten.linear": 4}, after={"aten.linear": 2})
    assert torch.equal(run.program.tensors["base.weight"], module.base.weight)


def test_sums_that_are_no_sums_of_layers_are_no_sites() -> None:
    def forward(m: Written, x: Tensor, y: Tensor) -> list[Tensor]:
        return [
            x + m.square(x),
            m.base(x) + m.base(y),
            m.base(x) + m.up(torch.relu(m.down(x))),
            m.base(x) + m.bias,
            x + y,
            m.square(x) + x * y,
        ]

    module = written(forward, base=nn.Linear(6, 5), square=nn.Linear(6, 6), bias=nn.Parameter(torch.ones(5)), **pair())
    assert not run_passes(capture(module, (X, X.flip(0))), [FoldParametrizations()]).records[0].anchors


@settings(max_examples=8, deadline=None)
@given(
    sizes=st.tuples(*[st.integers(1, 7)] * 3),
    rank=st.integers(1, 3),
    biases=st.tuples(*[st.booleans()] * 3),
    scale=st.sampled_from([0.25, -2.0, 3.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 9),
)
def test_linear_layers_of_any_size(
    sizes: tuple[int, ...], rank: int, biases: tuple[bool, ...], scale: float, dtype: torch.dtype, seed: int
) -> None:
    rows, inputs, outputs = sizes
    down, up = nn.Linear(inputs, rank, bias=biases[0]), nn.Linear(rank, outputs, bias=biases[1])
    module = randomised(Lora(nn.Linear(inputs, outputs, bias=biases[2]), [(down, up)], scale), seed).to(dtype)
    assert_rewrites(FoldParametrizations(), module, (normal(rows, inputs, dtype=dtype),), before={}, after=ONE_LINEAR)


@settings(max_examples=5, deadline=None)
@given(
    channels=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 2)),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    bias=st.booleans(),
)
def test_convolutions_of_any_kind(
    channels: tuple[int, ...], kernel: int, stride: int, padding: int, dilation: int, bias: bool
) -> None:
    inputs, outputs, rank = channels
    sliding: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation}
    down = nn.Conv2d(inputs, rank, kernel, bias=False, **sliding)
    module = Lora(nn.Conv2d(inputs, outputs, kernel, bias=bias, **sliding), [(down, nn.Conv2d(rank, outputs, 1))])
    example = normal(2, inputs, 7, 6)
    assert_rewrites(
        FoldParametrizations(), randomised(module), (example,), before={"aten.conv2d": 3}, after={"aten.conv2d": 1}
    )
