"""Where ``fold-value-bias`` refuses, and why."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowopt.passes.fold.fold_value_bias import FoldValueBias
from flowopt.pipeline.runner import run_passes
from flowopt.program.capture import capture
from flowopt.testing import assert_refuses
from tests.passes.fold.values import FORMS, WIDTH, attention, heads, library, merged, projected
from tests.passes.programs import Written, normal

X = normal(2, 5, WIDTH)


def refuses(code: str, forward: Callable[..., Any], *more: Tensor) -> None:
    module = attention("library")
    module.function = forward
    assert_refuses(FoldValueBias(), module, (X, *more), code=code)


@pytest.mark.parametrize("form", ["computed-mask", "hiding-mask", "infinite-mask", "added-masks"])
def test_refuses_a_mask_that_may_hide_a_row(form: str) -> None:
    refuses("mask-may-hide-a-row", FORMS[form])


@pytest.mark.parametrize("cast", [True, False])
def test_refuses_a_mask_that_a_smaller_dtype_makes_infinite(cast: bool) -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        mask = torch.where(x[:, None, None, :, 0].float() > 0, 0.0, torch.finfo(torch.float32).min)
        mask = (mask.half() if cast else mask).expand(-1, 1, 5, -1)
        returned: Tensor = m.out(library(m, x, attn_mask=mask))
        return returned

    module = attention("library").half()
    module.function = forward
    assert_refuses(FoldValueBias(), module, (X.half(),), code="mask-may-hide-a-row")


def test_refuses_a_value_projection_without_bias() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        q, k, _ = projected(m, x)
        v = heads(F.linear(x, m.value.weight))
        returned: Tensor = m.out(merged(F.scaled_dot_product_attention(q, k, v)))
        return returned

    refuses("no-bias", forward)


def test_refuses_a_bias_that_differs_from_value_to_value() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        v = F.linear(x[0], m.value.weight, m.table)
        returned: Tensor = m.out(torch.softmax(m.query(x[0]) @ m.key(x[0]).mT, -1) @ v)
        return returned

    module = attention("library")
    module.function = forward
    module.register_buffer("table", normal(5, WIDTH, seed=3))
    assert_refuses(FoldValueBias(), module, (X,), code="unsupported-spelling")


def test_refuses_a_bias_that_is_packed_with_others() -> None:
    refuses("no-gain", FORMS["packed"])


def test_refuses_values_that_are_no_projection() -> None:
    def forward(m: Written, x: Tensor) -> list[Tensor]:
        q, k, v = projected(m, x)
        return [
            m.out(merged(F.scaled_dot_product_attention(q, k, torch.relu(v)))),
            m.out(merged(torch.softmax(q @ k.mT, -1) @ heads(x))),
        ]

    refuses("not-linear-producer", forward)


def test_refuses_an_output_that_no_layer_reads() -> None:
    def forward(m: Written, x: Tensor) -> list[Tensor]:
        y = library(m, x)
        return [m.out(y), torch.sin(y), m.out(torch.relu(library(m, x))), F.linear(x, library(m, x)[0])]

    refuses("not-linear-reader", forward)


def test_refuses_an_output_of_the_model() -> None:
    refuses("graph-output", lambda m, x: library(m, x))


def test_refuses_values_that_are_read_elsewhere() -> None:
    def forward(m: Written, x: Tensor) -> list[Tensor]:
        (q, k, v), u = projected(m, x), heads(m.value(x))
        y, z = F.scaled_dot_product_attention(q, k, v), F.scaled_dot_product_attention(q, u, u)
        return [m.out(merged(y)), torch.sin(v), m.out(merged(z))]

    refuses("multiple-readers", forward)


def test_refuses_weights_that_do_not_add_up_over_the_values() -> None:
    def forward(m: Written, x: Tensor) -> list[Tensor]:
        q, k, v = projected(m, x)
        return [
            m.out(merged(torch.softmax(q @ k.mT, -2) @ v)),
            m.out(merged(torch.softmax(q @ k.mT, -1).mT @ heads(m.value(x)))),
            # A row of weights without its last one adds up to less.
            m.out(merged(torch.softmax(q @ k.mT, -1)[..., :-1] @ heads(m.value(x))[:, :, 1:])),
        ]

    refuses("axis-mismatch", forward)


def test_refuses_features_on_another_axis() -> None:
    def forward(m: Written, x: Tensor) -> list[Tensor]:
        q, k, v = projected(m, x)
        y = F.scaled_dot_product_attention(q, k, v)
        over_features = torch.softmax(m.value(x).mT @ m.query(x), -1) @ m.value(x).mT
        return [F.linear(y, m.out.weight[:, :3]), F.linear(over_features, m.second.weight[:, :5])]

    refuses("axis-mismatch", forward)


def test_refuses_attention_with_dropout() -> None:
    refuses("train-mode", lambda m, x: m.out(library(m, x, dropout_p=0.5)))


@pytest.mark.parametrize("what", ["bias", "weight", "output"])
def test_refuses_parameters_that_are_inputs(what: str) -> None:
    def forward(m: Written, x: Tensor, given: Tensor) -> Tensor:
        q, k, _ = projected(m, x)
        weight, bias = (
            (given, m.value.bias) if what == "weight" else (m.value.weight, given if what == "bias" else m.value.bias)
        )
        y = merged(F.scaled_dot_product_attention(q, k, heads(F.linear(x, weight, bias))))
        return F.linear(y, given if what == "output" else m.out.weight)

    shapes = {"bias": (WIDTH,), "weight": (WIDTH, WIDTH), "output": (7, WIDTH)}
    refuses("not-constant", forward, normal(*shapes[what]))


def test_refuses_a_bias_that_would_overflow() -> None:
    module = attention("library")
    module.value.bias.data[1] = 3e38
    module.out.weight.data[0, 1] = 10.0
    assert_refuses(FoldValueBias(), module, (X,), code="not-finite")


def test_a_softmax_that_weighs_no_values_is_no_site() -> None:
    module = Written(lambda m, x: torch.softmax(m.fc(x), -1), fc=nn.Linear(WIDTH, 3)).eval()
    assert run_passes(capture(module, (X,)), [FoldValueBias()]).records[0].anchors == 0
