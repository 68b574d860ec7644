from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowopt.analysis.attention_sites import attention_sites
from flowopt.errors import UserError
from flowopt.ir.metadata import sizes_as_text
from flowopt.ops.attention import InPlaceOfSoftmax, LinearForm, MeanAttention, linearization
from flowopt.passes.linearize.linearize_attention import LinearizeAttention
from flowopt.pipeline.runner import run_passes
from flowopt.pipeline.text import parse_pipeline
from flowopt.program.program import Program
from flowopt.testing import assert_refuses, assert_rewrites
from tests.analysis.attentions import HEADS, LENGTH, REAL, WIDTH, K, Q, V, attend, places, program_of, written
from tests.passes.programs import Written, normal

CALL = "aten.scaled_dot_product_attention"


def leaves_of(program: Program, make: Callable[..., LinearForm] = MeanAttention) -> dict[str, InPlaceOfSoftmax]:
    """A stand-in for every attention, whose weights are random where it has some."""
    torch.manual_seed(3)
    made = {site.name: InPlaceOfSoftmax(make(site.shape)) for site in attention_sites(program)}
    for parameter in (p for leaf in made.values() for p in leaf.parameters()):
        parameter.data = torch.randn_like(parameter)
    return made


def linearized(program: Program, leaves: dict[str, InPlaceOfSoftmax]) -> Program:
    run = run_passes(program, [LinearizeAttention(leaves=leaves)])
    assert run.records[0].applied, run.records[0].refused
    return run.program


def output(program: Program, *inputs: Tensor) -> Tensor:
    found = program.run(*inputs)
    assert isinstance(found, Tensor)
    return found


def padded(m: Any, q: Tensor, k: Tensor, v: Tensor, real: Tensor) -> Tensor:
    return attend(q, k, v, attn_mask=real[:, None, None].bool())


def causal_padded(m: Any, q: Tensor, k: Tensor, v: Tensor, real: Tensor) -> Tensor:
    return attend(q, k, v, attn_mask=real[:, None, None].bool() & (places(q, k) >= 0))


def additive(m: Any, q: Tensor, k: Tensor, v: Tensor, real: Tensor) -> Tensor:
    hidden = (real[:, None, None] == 0) | (places(q, k) < 0)
    return attend(q, k, v, attn_mask=torch.zeros(()).masked_fill(hidden, torch.finfo(torch.float32).min))


def by_choice(m: Any, q: Tensor, k: Tensor, v: Tensor, real: Tensor) -> Tensor:
    mask = torch.where((places(q, k) >= 0) & real[:, None, None].bool(), 0.0, -torch.inf)
    return attend(q, k, v, attn_mask=mask.expand(-1, 4, -1, -1).clone())


def grouped(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend(q, k[:, :2], v[:, :2], enable_gqa=True)


# What is rewritten.


@pytest.mark.parametrize(
    ("function", "more"),
    [
        (lambda m, q, k, v: attend(q, k, v), ()),
        (lambda m, q, k, v: attend(q, k, v, is_causal=True), ()),
        (lambda m, q, k, v: attend(q, k, v, attn_mask=places(q, k) >= 0), ()),
        (padded, (REAL,)),
        (causal_padded, (REAL,)),
        (additive, (REAL,)),
        (grouped, ()),
    ],
    ids=["full", "causal by flag", "causal by mask", "padding", "causal and padding", "additive", "grouped"],
)
def test_a_call_becomes_its_stand_in_and_the_float64_twin_agrees(
    function: Callable[..., Tensor], more: tuple[Tensor, ...]
) -> None:
    program = program_of(function, *more, is_free=True)
    pass_ = LinearizeAttention(leaves=leaves_of(program), to="mean", min_snr_db=-10.0)
    run = assert_rewrites(pass_, program, before={CALL: 1}, after={CALL: 0})
    verdict = run.records[0].verdict
    assert verdict is not None and verdict.outcome == "approximate"


def _mean(value: Tensor, visible: Tensor) -> Tensor:
    weights = visible.double() / visible.sum(-1, keepdim=True).clamp(min=1)
    return weights @ value


@pytest.mark.parametrize("length", [1, 5, LENGTH, 64])
@pytest.mark.parametrize("function", [padded, causal_padded, additive, by_choice])
def test_free_sizes_stay_free_and_padding_is_no_part_of_the_mean(function: Callable[..., Tensor], length: int) -> None:
    program = captured(function)
    made = captured_mean(function)
    assert made.shape("output") == program.shape("output") == ("batch", HEADS, "length", WIDTH)
    q, k, v = (normal(3, HEADS, length, WIDTH, seed=seed, dtype=torch.float64) for seed in range(3))
    real = torch.ones(3, length, dtype=torch.long)
    real[0, length // 2 + 1 :] = 0
    visible = real[:, None, None].bool().expand(-1, 1, length, -1)
    visible = visible if function is padded else visible.tril()
    # Sums of 64 numbers in float32.
    found = output(made, q.float(), k.float(), v.float(), real)
    torch.testing.assert_close(found.double(), _mean(v, visible), rtol=1e-5, atol=1e-5)


_PROGRAMS: dict[tuple[str, bool], Program] = {}


def captured(function: Callable[..., Tensor]) -> Program:
    """Captured once."""
    key = (function.__name__, False)
    if key not in _PROGRAMS:
        _PROGRAMS[key] = program_of(function, REAL, is_free=True, dims={"length": (1, 256)})
    return _PROGRAMS[key]


def captured_mean(function: Callable[..., Tensor]) -> Program:
    key = (function.__name__, True)
    if key not in _PROGRAMS:
        program = captured(function)
        _PROGRAMS[key] = linearized(program, leaves_of(program))
    return _PROGRAMS[key]


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("hedgehog", padded),
        ("elu", causal_padded),
        # Their graphs of a hundred operators take long to trace.
        *(pytest.param(name, causal_padded, marks=pytest.mark.slow) for name in ("flow", "hybrid")),
    ],
)
def test_the_result_is_that_of_the_leaf(name: str, function: Callable[..., Tensor]) -> None:
    program = captured(function)
    leaves = leaves_of(program, linearization(name))
    made = linearized(program, leaves)
    (leaf,) = leaves.values()
    for batch, length in ((1, 1), (3, 70), (2, 2)):
        q, k, v = (normal(batch, HEADS, length, WIDTH, seed=seed) for seed in range(3))
        real = torch.ones(batch, length, dtype=torch.long)
        real[0, : length // 2] = 0
        mask = real[:, None, None].bool()
        wanted = leaf.double()(q.double(), k.double(), v.double(), mask).detach()
        leaf.float()
        shown = mask.mT
        found = output(made, q, k, v, real).double()
        # Of padded queries nothing is asked. Quotients of sums of 70 products in float32.
        torch.testing.assert_close(found * shown, wanted * shown, rtol=1e-3, atol=1e-4)


def test_keys_of_fewer_heads_are_repeated() -> None:
    program = program_of(grouped)
    made = linearized(program, leaves_of(program))
    assert output(made, Q, K, V).shape == (2, HEADS, LENGTH, WIDTH)
    wanted = V[:, :2].mean(2, keepdim=True).repeat_interleave(2, 1).expand(-1, -1, LENGTH, -1)
    # Means of 6 numbers in float32.
    torch.testing.assert_close(output(made, Q, K, V), wanted, rtol=1e-5, atol=1e-6)


def test_queries_may_be_as_many_as_there_are_no_keys() -> None:
    queries = normal(2, HEADS, 3, WIDTH)
    program = program_of(lambda m, q, k, v: attend(q, k, v), inputs=(queries, K, V))
    made = linearized(program, leaves_of(program))
    wanted = V.mean(2, keepdim=True).expand(-1, -1, 3, -1)
    # Means of 6 numbers in float32.
    torch.testing.assert_close(output(made, queries, K, V), wanted, rtol=1e-5, atol=1e-6)


def test_a_mask_that_is_causal_alone_is_not_read() -> None:
    program = program_of(lambda m, q, k, v: attend(q, k, v, attn_mask=places(q, k) >= 0), is_free=True)
    made = linearized(program, leaves_of(program))
    assert [n for n in made.graph.nodes if n.target is torch.ops.aten.arange.default] == []


@pytest.mark.parametrize("function", [padded, causal_padded, additive, by_choice])
def test_no_matrix_of_all_pairs_is_left_of_a_mask(function: Callable[..., Tensor]) -> None:
    made = captured_mean(function)
    pairs = [n.name for n in made.graph.nodes if sizes_as_text(n).count(sizes_as_text(made.node("q"))[2]) > 1]
    assert pairs == []


def test_layers_that_differ_in_tensors_alone_keep_their_own() -> None:
    def forward(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, attend(q, k, v))

    program = program_of(forward)
    leaves = leaves_of(program, linearization("hedgehog"))
    made = linearized(program, leaves)
    first, second = leaves.values()
    with torch.no_grad():
        wanted = second(Q, K, first(Q, K, V))
    # Quotients of sums of 6 products in float32.
    torch.testing.assert_close(output(made, Q, K, V), wanted, rtol=1e-4, atol=1e-5)


def test_half_precision_stays_half_precision() -> None:
    half = (Q.bfloat16(), K.bfloat16(), V.bfloat16())
    program = program_of(lambda m, q, k, v: attend(q, k, v), inputs=half)
    made = linearized(program, leaves_of(program, linearization("elu")))
    assert output(made, *half).dtype is torch.bfloat16


def test_only_those_that_are_chosen() -> None:
    program = program_of(lambda m, q, k, v: attend(q, k, attend(q, k, v)))
    run = run_passes(program, [LinearizeAttention(leaves=leaves_of(program), only=f"{CALL[5:]}_1")])
    assert [a.site for a in run.records[0].applied] == [f"{CALL[5:]}_1"]
    assert run.records[0].refusal_counts == {"not-chosen": 1}


# What is refused.


def test_refuses_attentions_without_a_stand_in() -> None:
    assert_refuses(LinearizeAttention(), program_of(lambda m, q, k, v: attend(q, k, v)), code="not-measured")


def test_refuses_stand_ins_for_another_shape() -> None:
    program = program_of(lambda m, q, k, v: attend(q, k, v))
    other = program_of(lambda m, q, k, v: attend(q, k, v, scale=0.3))
    assert_refuses(LinearizeAttention(leaves=leaves_of(other)), program, code="not-measured")


def test_refuses_attentions_that_were_not_chosen() -> None:
    program = program_of(lambda m, q, k, v: attend(q, k, v))
    assert_refuses(LinearizeAttention(leaves=leaves_of(program), only="other"), program, code="not-chosen")


TABLE = normal(HEADS, LENGTH, LENGTH, seed=7)
SLOPES = 2.0 ** -torch.arange(1.0, HEADS + 1)[:, None, None]


def scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.mT * WIDTH**-0.5


def with_sink(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    joined = torch.cat([scores(q, k), m.sink.expand(q.shape[0], HEADS, LENGTH, 1)], -1)
    return joined.softmax(-1)[..., :-1] @ v


REFUSED: list[tuple[str, Callable[..., Tensor], dict[str, Any]]] = [
    ("alibi", lambda m, q, k, v: attend(q, k, v, attn_mask=-SLOPES * places(q, k).abs()), {}),
    ("relative-bias", lambda m, q, k, v: attend(q, k, v, attn_mask=m.table), {"table": TABLE}),
    ("additive-bias", lambda m, q, k, v: attend(q, k, v, attn_mask=places(q, k).float().square()), {}),
    ("soft-cap", lambda m, q, k, v: written(9 * torch.tanh(scores(q, k) / 9), v), {}),
    ("attention-sinks", with_sink, {"sink": normal(1, 1, 1, 1)}),
    ("arbitrary-mask", lambda m, q, k, v: attend(q, k, v, attn_mask=places(q, k).abs() < 3), {}),
    ("attention-not-recognized", lambda m, q, k, v: written(scores(q, k), v), {}),
    ("axis-mismatch", lambda m, q, k, v: attend(q[:, :, :4], k, v, is_causal=True), {}),
    ("train-mode", lambda m, q, k, v: attend(q, k, v, dropout_p=0.1), {}),
    ("unsupported-spelling", lambda m, q, k, v: attend(q[:, 0], k[:, 0], v[:, 0]), {}),
]


@pytest.mark.parametrize(("code", "function", "parts"), REFUSED, ids=[code for code, *_ in REFUSED])
def test_refuses(code: str, function: Callable[..., Tensor], parts: dict[str, Any]) -> None:
    program = program_of(function, **parts)
    assert_refuses(LinearizeAttention(leaves=leaves_of(program)), program, code=code)


def test_refuses_a_free_number_of_features() -> None:
    module = Written(lambda m, x: attend(x, x, x, scale=1.0)).eval()
    free = {"x": {3: "width"}}
    assert_refuses(LinearizeAttention(), module, (Q,), dynamic=free, code="dynamic-shape")


def test_refuses_values_without_a_recorded_shape() -> None:
    program = program_of(lambda m, q, k, v: attend(q, k, v)).copy()
    del program.node("k").meta["val"]
    assert_refuses(LinearizeAttention(), program, code="missing-metadata")


def test_a_pipeline_has_no_trained_stand_ins() -> None:
    with pytest.raises(UserError, match="linearize-attention changes the model by what is measured on data") as caught:
        parse_pipeline("linearize-attention:to=flow")
    assert "flowopt adapt MODEL --linearize hybrid --data FILE" in caught.value.hint


def test_a_leaf_is_left_as_it_is() -> None:
    program = program_of(lambda m, q, k, v: attend(q, k, v))
    leaves = leaves_of(program, linearization("hedgehog"))
    (leaf,) = leaves.values()
    leaf.train()
    before = {name: tensor.clone() for name, tensor in leaf.state_dict().items()}
    linearized(program, leaves)
    assert leaf.training
    assert all(torch.equal(before[name], tensor) for name, tensor in leaf.state_dict().items())
    assert isinstance(leaf, nn.Module)
