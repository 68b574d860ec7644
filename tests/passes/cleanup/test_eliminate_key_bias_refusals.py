"""Where ``eliminate-key-bias`` refuses, and why."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowopt.passes.cleanup.eliminate_key_bias import EliminateKeyBias
from flowopt.pipeline.runner import PipelineRun, run_passes
from flowopt.program.capture import capture
from flowopt.testing import assert_refuses
from tests.passes.fold.values import FORMS, HEADS, WIDTH, attention, heads, library, merged, projected
from tests.passes.programs import Written, normal

X = normal(2, 5, WIDTH)
HIDDEN = torch.ones(5, 5).triu(1) > 0


def refuses(code: str, forward: Callable[..., Any], *more: Tensor) -> PipelineRun:
    module = attention("library")
    module.function = forward
    return assert_refuses(EliminateKeyBias(), module, (X, *more), code=code)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return merged(F.scaled_dot_product_attention(q, k, v))


def test_refuses_keys_and_scores_that_are_read_elsewhere() -> None:
    def forward(m: Written, x: Tensor) -> list[Tensor]:
        (q, k, v), both, shared = projected(m, x), heads(m.key(x)), heads(m.key(x))
        scores, compared = q @ heads(m.key(x)).mT, q @ heads(m.key(x)).mT
        return [
            attend(q, k, v) + k.sum(),
            attend(q, both, both),
            attend(shared, shared, v),
            torch.softmax(shared @ shared.mT, -1) @ v,
            torch.softmax(scores / 2.0, -1) @ v + scores.mean(),
            torch.softmax(compared, -1),
            compared == 0.0,
        ]

    refuses("multiple-readers", forward)


def test_refuses_outputs_of_the_model() -> None:
    def forward(m: Written, x: Tensor) -> list[Tensor]:
        q, v, keys, projections = heads(m.query(x)), heads(m.value(x)), heads(m.key(x)), m.key(x)
        scores, masked = q @ heads(m.key(x)).mT, q @ heads(m.key(x)).mT + torch.arange(5.0)
        weighed = [torch.softmax(s, -1) @ v for s in (scores / 2.0, masked)]
        return [attend(q, keys, v), keys, attend(q, heads(projections), v), projections, *weighed, scores, masked]

    refuses("graph-output", forward)


def test_refuses_a_key_projection_without_bias() -> None:
    refuses("no-bias", lambda m, x: attend(heads(m.query(x)), heads(F.linear(x, m.key.weight)), heads(m.value(x))))


def test_refuses_a_bias_that_is_packed_with_others() -> None:
    refuses("no-gain", FORMS["packed"])


def test_refuses_keys_that_are_more_than_moved() -> None:
    ways: list[Callable[[Tensor], Tensor]] = [
        lambda k: k * torch.linspace(0.5, 1.0, 5)[:, None] + k.roll(1, -1),
        lambda k: F.layer_norm(k, k.shape[-1:]),
        lambda k: torch.cat([torch.ones(2, HEADS, 3, 3), k], 2),
        lambda k: F.pad(k, (0, 0, 0, 1)),
    ]

    def forward(m: Written, x: Tensor) -> list[Tensor]:
        q, keys = heads(m.query(x)), [way(heads(m.key(x))) for way in ways]
        return [y for k in keys for y in (attend(q, k, k.sin()), torch.softmax(q @ k.mT, -1))]

    refuses("not-linear-producer", forward)


def test_refuses_scores_that_are_more_than_scaled_masked_and_hidden() -> None:
    lowest = torch.finfo(torch.float32).min
    ways: list[Callable[[Tensor], Tensor]] = [
        lambda s: 5.0 * torch.tanh(s / 5.0),
        lambda s: s.clamp(max=5.0),
        lambda s: s * torch.arange(5.0),
        lambda s: s * torch.arange(25.0).view(5, 5),
        lambda s: s * s,
        lambda s: s + s,
        lambda s: s - s.transpose(0, 1).flatten(0, 1).unflatten(0, (HEADS, 2)).transpose(0, 1),
        lambda s: 1.0 / s,
        lambda s: torch.where(HIDDEN, -10.0, s),
        lambda s: torch.where(HIDDEN, -1e9, s),
        lambda s: torch.where(s > 0, s, -torch.inf),
        lambda s: torch.where(HIDDEN, torch.arange(5.0), s),
        lambda s: s.masked_fill(HIDDEN, torch.inf),
        lambda s: s.masked_fill(HIDDEN, torch.nan),
        lambda s: s.masked_fill(HIDDEN, lowest) / 1e30,
        lambda s: s[:, :, :, None] + torch.zeros(3, 1),
    ]

    def forward(m: Written, x: Tensor) -> list[Tensor]:
        return [torch.softmax(way(heads(m.query(x)) @ heads(m.key(x)).mT), -1) for way in ways]

    run = refuses("not-a-row-shift", forward)
    assert len(run.records[0].refused) == len(ways)


def test_refuses_a_softmax_over_another_axis() -> None:
    def forward(m: Written, x: Tensor) -> list[Tensor]:
        (q, k, v), u, w = projected(m, x), heads(m.key(x)), heads(m.key(x))
        return [
            torch.softmax(q @ k.mT, -2) @ v,
            torch.softmax((q @ u.mT).mT, -1) @ v,
            # Rows of all keys of all queries.
            torch.softmax((q @ w.mT).flatten(2), -1),
        ]

    refuses("axis-mismatch", forward)


def test_refuses_features_along_the_axis_of_keys() -> None:
    def forward(m: Written, x: Tensor) -> list[Tensor]:
        keys = m.key(x).mT
        return [
            torch.softmax(m.query(x).mT @ m.key(x), -1),
            F.scaled_dot_product_attention(m.query(x).mT, keys, m.value(x).mT),
        ]

    refuses("axis-mismatch", forward)


def test_refuses_attention_with_dropout() -> None:
    refuses("train-mode", lambda m, x: library(m, x, dropout_p=0.5))


def test_refuses_a_bias_that_is_an_input() -> None:
    def forward(m: Written, x: Tensor, given: Tensor) -> Tensor:
        return attend(heads(m.query(x)), heads(F.linear(x, m.key.weight, given)), heads(m.value(x)))

    refuses("not-constant", forward, normal(WIDTH))


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_refuses_a_bias_that_is_no_number(number: float) -> None:
    module = attention("library")
    module.key.bias.data[1] = number
    assert_refuses(EliminateKeyBias(), module, (X,), code="not-finite")


def test_refuses_a_bias_that_differs_from_key_to_key() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        return torch.softmax(m.query(x[0]) @ F.linear(x[0], m.key.weight, m.table).mT, -1)

    module = attention("library")
    module.register_buffer("table", normal(5, WIDTH, seed=3))
    module.function = forward
    assert_refuses(EliminateKeyBias(), module, (X,), code="unsupported-spelling")


def test_a_softmax_of_no_product_is_no_site() -> None:
    module = Written(
        lambda m, x: [torch.softmax(m.fc(x), -1), torch.softmax(x @ m.fc.weight.mT, -1)], fc=nn.Linear(WIDTH, 3)
    ).eval()
    assert run_passes(capture(module, (X,)), [EliminateKeyBias()]).records[0].anchors == 0
