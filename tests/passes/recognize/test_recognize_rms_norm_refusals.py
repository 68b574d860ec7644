"""Where ``recognize-rms-norm`` refuses, and why."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flowopt.passes.recognize.recognize_rms_norm import RecognizeRmsNorm
from flowopt.program.capture import capture
from flowopt.testing import assert_refuses
from tests.passes.programs import Written, normal
from tests.passes.recognize.rms_norm import EPS, mean_of_squares, normed, root

X = normal(2, 4, 6)
Form = Callable[[Written, Tensor], Any]


def assert_all_refuse(code: str, forms: list[Form], x: Tensor = X, **parts: Any) -> None:
    """Each form, of an input of its own, is one site that is refused with ``code``."""
    module = Written(lambda m, v: [form(m, (1.0 + i) * v) for i, form in enumerate(forms)], **parts)
    run = assert_refuses(RecognizeRmsNorm(), module.eval(), (x,), code=code)
    assert len(run.records[0].refused) == len(forms)


def scaled_by(inner: Callable[[Tensor], Tensor]) -> Form:
    return lambda m, x: x * torch.rsqrt(inner(x))


def test_refuses_what_is_below_the_root_when_it_is_no_mean_of_squares_plus_epsilon() -> None:
    forms = [
        scaled_by(lambda x: x.var(-1, keepdim=True, unbiased=False) + EPS),
        scaled_by(lambda x: x.pow(3).mean(-1, keepdim=True) + EPS),
        scaled_by(lambda x: x.abs().mean(-1, keepdim=True) + EPS),
        scaled_by(lambda x: (x * x.tanh()).mean(-1, keepdim=True) + EPS),
        scaled_by(lambda x: mean_of_squares(x).clamp_min(EPS)),
        scaled_by(lambda x: x.square().sum(-1, keepdim=True) + EPS),
        scaled_by(lambda x: x.square().sum(-1, keepdim=True) / 5 + EPS),
        scaled_by(lambda x: x.square().sum(-1, keepdim=True) / x.exp() + EPS),
        scaled_by(lambda x: mean_of_squares(x) + mean_of_squares(x.tanh())),
        scaled_by(lambda x: x.square() + EPS),
        scaled_by(lambda x: x.square().sum(-1, keepdim=True)),
        lambda m, x: x / (mean_of_squares(x) + EPS).exp().sqrt(),
    ]
    assert_all_refuse("not-a-norm", forms)


def test_refuses_a_layer_norm() -> None:
    forms: list[Form] = [
        lambda m, x: normed(x - x.mean(-1, keepdim=True)),
        lambda m, x: (lambda y: normed((y - y.mean(-1, keepdim=True)).float()))(x.bfloat16()),
        lambda m, x: normed(x - x.sum(-1, keepdim=True) / 6),
    ]
    assert_all_refuse("not-a-norm", forms)


def test_refuses_when_the_root_scales_another_value() -> None:
    forms: list[Form] = [
        lambda m, x: x.tanh() * torch.rsqrt(mean_of_squares(x) + EPS),
        lambda m, x: x.tanh() / root(x),
        lambda m, x: x.bfloat16().float() * torch.rsqrt(mean_of_squares(x) + EPS),
        # Squares of the rounded value: not those of what is scaled.
        lambda m, x: x * torch.rsqrt(mean_of_squares(x.bfloat16().float()) + EPS),
        lambda m, x: x * torch.rsqrt(mean_of_squares(x.bfloat16()) + EPS),
        lambda m, x: 2.0 * torch.rsqrt(mean_of_squares(x) + EPS),
        lambda m, x: (lambda r: r * r)(torch.rsqrt(mean_of_squares(x) + EPS)),
        lambda m, x: root(x) / x,
        lambda m, x: x * root(x),
        # Epsilon beside the root.
        lambda m, x: x / (torch.sqrt(mean_of_squares(x) + EPS) + EPS),
        lambda m, x: x * (2.0 / root(x)),
        lambda m, x: torch.rsqrt(mean_of_squares(x) + EPS).exp(),
        lambda m, x: x * torch.rsqrt(mean_of_squares(x) + EPS).bfloat16(),
    ]
    assert_all_refuse("not-a-norm", forms)


def test_refuses_other_axes() -> None:
    forms = [
        scaled_by(lambda x: x.square().mean(1, keepdim=True) + EPS),
        scaled_by(lambda x: x.square().mean((1, 2), keepdim=True) + EPS),
        scaled_by(lambda x: x.square().mean((-1, 0), keepdim=True) + EPS),
        scaled_by(lambda x: x.square().sum(1, keepdim=True) / 4 + EPS),
    ]
    assert_all_refuse("axis-mismatch", forms)


def test_refuses_a_free_last_axis() -> None:
    forms: list[Form] = [
        lambda m, x: normed(x),
        lambda m, x: x * torch.rsqrt(x.square().sum(-1, keepdim=True) / 6 + EPS),
    ]
    module = Written(lambda m, x: [form(m, (1.0 + i) * x) for i, form in enumerate(forms)]).eval()
    assert_refuses(RecognizeRmsNorm(), module, (X,), code="dynamic-shape", dynamic={"x": {2: "width"}})


def test_refuses_values_that_are_read_elsewhere_too() -> None:
    def parts_of(x: Tensor) -> dict[str, Tensor]:
        square = x.square()
        total = square.sum(-1, keepdim=True)
        mean = total / 6
        added = mean + EPS
        below = torch.sqrt(added)
        inverse = below.reciprocal()
        values = {"square": square, "total": total, "mean": mean, "added": added, "below": below, "inverse": inverse}
        return values | {"norm": x * inverse}

    def form(name: str) -> Form:
        def forward(m: Written, x: Tensor) -> list[Tensor]:
            values = parts_of(x)
            return [values["norm"], values[name].exp()]

        return forward

    assert_all_refuse("multiple-readers", [form(n) for n in parts_of(X) if n != "norm"])


def test_refuses_values_that_are_outputs() -> None:
    def form(at: int) -> Form:
        def forward(m: Written, x: Tensor) -> list[Tensor]:
            square = x.square()
            mean = square.mean(-1, keepdim=True)
            added = mean + EPS
            inverse = torch.rsqrt(added)
            return [x * inverse, (square, mean, added, inverse)[at]]

        return forward

    assert_all_refuse("graph-output", [form(at) for at in range(4)])


def test_refuses_an_epsilon_that_is_computed() -> None:
    assert_all_refuse("not-constant", [scaled_by(lambda x: mean_of_squares(x) + x.exp().mean())])


def test_refuses_an_epsilon_that_is_no_positive_number() -> None:
    forms: list[Form] = [
        scaled_by(mean_of_squares),
        scaled_by(lambda x: mean_of_squares(x) + 0.0),
        scaled_by(lambda x: mean_of_squares(x) + -1e-6),
        scaled_by(lambda x: mean_of_squares(x) + float("inf")),
        lambda m, x: x * torch.rsqrt(mean_of_squares(x) + m.of_rows),
        lambda m, x: x * torch.rsqrt(mean_of_squares(x) + m.zero),
        lambda m, x: x * torch.rsqrt(torch.add(m.one, mean_of_squares(x), alpha=2)),
        lambda m, x: x * torch.rsqrt(mean_of_squares(x) + m.one.double()[None]),
    ]
    parts = {"of_rows": torch.ones(4, 1), "zero": torch.zeros(()), "one": torch.ones(1)}
    assert_all_refuse("unsupported-spelling", forms, **parts)


def test_refuses_a_mean_that_drops_its_axis_or_casts() -> None:
    forms: list[Form] = [
        lambda m, x: x[0, 0] * torch.rsqrt(x[0, 0].square().mean(-1) + EPS),
        scaled_by(lambda x: x.square().mean(-1, keepdim=True, dtype=torch.float64) + EPS),
    ]
    assert_all_refuse("unsupported-spelling", forms)


def test_refuses_a_norm_that_is_computed_in_16_bits() -> None:
    assert_all_refuse("unsupported-spelling", [lambda m, x: normed(x)], X.bfloat16())


def test_refuses_a_value_without_recorded_shape() -> None:
    program = capture(Written(lambda m, x: normed(x.chunk(2, -1)[1])).eval(), (X,))
    del program.node("getitem_1").meta["val"]
    assert_refuses(RecognizeRmsNorm(), program, code="missing-metadata")
