"""Where ``fold-parametrizations`` refuses, and why."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowopt.passes.fold.fold_parametrizations import FoldParametrizations
from flowopt.pipeline.runner import run_passes
from flowopt.program.capture import capture
from flowopt.testing import assert_refuses
from tests.passes.fold.adapters import lora_linear
from tests.passes.programs import Written, normal, randomised

X = normal(2, 3, 6)


def adapted(forward: Any, **parts: nn.Module | Tensor) -> Written:
    """A base, and an adapter of rank 2, among other parts."""
    defaults: dict[str, Any] = {
        "base": nn.Linear(6, 5),
        "down": nn.Linear(6, 2, bias=False),
        "up": nn.Linear(2, 5, bias=False),
    }
    return randomised(Written(forward, **(defaults | parts)))


@pytest.mark.parametrize("tapped", ["base", "down", "up"])
def test_refuses_when_a_value_is_read_elsewhere_too(tapped: str) -> None:
    def forward(m: Written, x: Tensor) -> tuple[Tensor, Tensor]:
        values = {"base": m.base(x), "down": m.down(x)}
        values["up"] = m.up(values["down"])
        return values["base"] + values["up"], values[tapped].exp()

    assert_refuses(FoldParametrizations(), adapted(forward), (X,), code="multiple-readers")


def test_refuses_when_a_value_is_an_output() -> None:
    def forward(m: Written, x: Tensor) -> tuple[Tensor, Tensor]:
        y = m.base(x)
        return y + m.up(m.down(x)), y

    assert_refuses(FoldParametrizations(), adapted(forward), (X,), code="graph-output")


def test_refuses_a_scale_that_depends_on_the_input() -> None:
    module = adapted(lambda m, x: m.base(x) + m.up(m.down(x)) * torch.sigmoid(x.mean()))
    run = assert_refuses(FoldParametrizations(), module, (X,), code="not-constant")
    assert "sigmoid, which is computed at run time" in run.records[0].refused[0].message


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_refuses_parameters_that_are_inputs(part: str) -> None:
    def forward(m: Written, x: Tensor, given: Tensor) -> Tensor:
        weight, bias = (given, None) if part == "weight" else (m.base.weight, given)
        return F.linear(x, weight, bias) + m.up(m.down(x))

    inputs = (X, normal(5, 6) if part == "weight" else normal(5))
    assert_refuses(FoldParametrizations(), adapted(forward), inputs, code="not-constant")


def test_refuses_a_scale_that_the_model_changes() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        m.scale.mul_(0.9)
        added: Tensor = m.base(x) + m.up(m.down(x)) * m.scale
        return added

    assert_refuses(FoldParametrizations(), adapted(forward, scale=torch.tensor(0.5)), (X,), code="not-constant")


def test_refuses_terms_that_are_repeated() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        added: Tensor = m.one(x) + m.base(x)
        return added

    assert_refuses(FoldParametrizations(), adapted(forward, one=nn.Linear(6, 1)), (X,), code="axis-mismatch")


def test_refuses_values_that_are_repeated_within_a_term() -> None:
    module = adapted(lambda m, x: m.base(x) + 0.5 * (m.one(x) + m.up(m.down(x))), one=nn.Linear(6, 1))
    run = assert_refuses(FoldParametrizations(), module, (X,), code="axis-mismatch")
    assert len(run.records[0].refused) == 1


def test_refuses_a_reshape_that_moves_features() -> None:
    # The sum has the sizes of the base's output, but its adapter mixes tokens and features.
    module = adapted(lambda m, x: m.base(x) + m.up(m.down(x)).reshape(2, 5, 3).reshape(2, 3, 5))
    assert_refuses(FoldParametrizations(), module, (X,), code="axis-mismatch")


def test_refuses_a_sum_with_other_rows_than_the_input() -> None:
    module = adapted(lambda m, x: m.base(x).reshape(3, 2, 5) + m.up(m.down(x)).reshape(3, 2, 5))
    assert_refuses(FoldParametrizations(), module, (X,), code="axis-mismatch")


def test_refuses_dropout_in_train_mode() -> None:
    module = adapted(lambda m, x: m.base(x) + m.up(torch.dropout(m.down(x), 0.5, False)))
    program = capture(module, (X,))
    linears = program.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)
    (dropped,) = [n for n in linears if n.args[0].op == "call_function"]
    with program.graph.inserting_before(dropped):
        dropout = program.graph.call_function(torch.ops.aten.dropout.default, (dropped.args[0], 0.5, True))
    dropout.meta = dict(dropped.args[0].meta)
    dropped.replace_input_with(dropped.args[0], dropout)
    assert_refuses(FoldParametrizations(), program, code="train-mode")


def test_refuses_two_adapters_without_a_base() -> None:
    def thin() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 1), nn.Linear(1, 5))

    module = adapted(lambda m, x: m.one(x) + m.two(x), one=thin(), two=thin())
    run = assert_refuses(FoldParametrizations(), module, (X,), code="grows-too-much")
    assert run.records[0].refused[0].message == "one layer has 30 weights, the 4 have 22"


def test_refuses_a_weight_that_others_read_beyond_the_limit() -> None:
    module = adapted(lambda m, x: [m.base(x) + m.up(m.down(x)), m.base(x.abs())])
    run = assert_refuses(FoldParametrizations(max_growth=0), module, (X,), code="grows-too-much")
    # The adapter's 22 numbers go; the base's 30 stay for the other call.
    assert "120 bytes would take the place of 88; max_growth is 0" in run.records[0].refused[0].message
    assert run_passes(capture(module, (X,)), [FoldParametrizations(max_growth=32)]).records[0].applied


def test_refuses_adapters_that_rounding_would_lose() -> None:
    module = randomised(lora_linear()).bfloat16()
    module.get_parameter("up.0.weight").data.mul_(1e-5)
    assert_refuses(FoldParametrizations(), module, (X.bfloat16(),), code="lost-in-rounding")


def test_refuses_a_weight_that_would_overflow() -> None:
    module = randomised(lora_linear())
    module.get_parameter("up.0.weight").data[0, 0] = 3e38
    module.get_parameter("down.0.weight").data[0, 0] = 100.0
    assert_refuses(FoldParametrizations(), module, (X,), code="not-finite")


def test_refuses_scales_and_shifts_of_each_token_and_casts_to_integers() -> None:
    forms: list[Any] = [
        lambda m, x: m.base(x) + m.up(m.down(x)) * m.per_token,
        lambda m, x: m.base(x) + m.up(m.down(x) + m.per_token),
        lambda m, x: m.base(x) + m.up(m.down(x).long().float()),
    ]
    module = adapted(lambda m, x: [form(m, x) for form in forms], per_token=nn.Parameter(torch.ones(3, 1)))
    run = assert_refuses(FoldParametrizations(), module, (X,), code="unsupported-spelling")
    assert len(run.records[0].refused) == len(forms)


def test_refuses_convolutions_that_are_no_one_convolution() -> None:
    forms: list[Any] = [
        # Another kernel or dilation, a shift of what is padded, groups in a chain, and two kernels after each other.
        lambda m, x: m.conv(x) + m.dilated(x),
        lambda m, x: m.conv(x) + m.point(x),
        lambda m, x: m.conv(x) + m.conv(x + 1.0),
        lambda m, x: m.conv(x) + m.conv(m.point(x)),
        lambda m, x: m.conv(x) + m.conv(m.grouped(x)),
        lambda m, x: m.grouped(x) + m.grouped(x * m.per_channel),
        lambda m, x: m.conv(x) + m.conv(m.conv(x)),
    ]
    module = adapted(
        lambda m, x: [form(m, x) for form in forms],
        conv=nn.Conv1d(4, 4, 3, padding=1),
        dilated=nn.Conv1d(4, 4, 3, padding=2, dilation=2),
        point=nn.Conv1d(4, 4, 1),
        grouped=nn.Conv1d(4, 4, 1, groups=2),
        per_channel=nn.Parameter(torch.ones(4, 1)),
    )
    run = assert_refuses(FoldParametrizations(), module, (normal(2, 4, 7),), code="unsupported-spelling")
    assert len(run.records[0].refused) == len(forms)


def test_refuses_weights_that_are_vectors() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        return F.linear(x, m.vector) + F.linear(x, m.vector * 2)

    module = adapted(forward, vector=nn.Parameter(torch.ones(6)))
    assert_refuses(FoldParametrizations(), module, (X,), code="unsupported-spelling")


def test_refuses_indices_that_are_computed() -> None:
    def forward(m: Written, ids: Tensor) -> Tensor:
        wide = ids.int()
        added: Tensor = m.table(wide) + m.table(wide.long()) * 0.5
        return added

    module = adapted(forward, table=nn.Embedding(7, 5))
    assert_refuses(FoldParametrizations(), module, (torch.arange(6),), code="unsupported-spelling")


def test_refuses_an_operator_without_recorded_shape() -> None:
    program = capture(adapted(lambda m, x: (lambda y: m.base(y) + m.up(m.down(y)))(x.chunk(2)[0])), (X,))
    del program.node("getitem").meta["val"]
    assert_refuses(FoldParametrizations(), program, code="missing-metadata")
