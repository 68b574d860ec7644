"""Layer norms that are written out are recognized in every spelling, and nothing else is."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from flowopt.passes.recognize.recognize_layer_norm import RecognizeLayerNorm
from flowopt.passes.recognize.recognize_rms_norm import RecognizeRmsNorm
from flowopt.pipeline.runner import run_passes
from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.testing import assert_refuses, assert_rewrites
from tests.passes.programs import Written, canonical, decomposed, normal, randomised, undecomposed

WIDTH, EPS = 6, 0.1
X = 0.1 * normal(2, 4, WIDTH)
LAYER_NORM = torch.ops.aten.layer_norm.default


def centred(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


def variance(x: Tensor) -> Tensor:
    return centred(x).pow(2).mean(-1, keepdim=True)


def normed(x: Tensor) -> Tensor:
    c = centred(x)
    return c * torch.rsqrt(c.pow(2).mean(-1, keepdim=True) + EPS)


def shared(x: Tensor, finish: Callable[[Tensor], Any]) -> Any:
    return finish(centred(x))


FORMS: dict[str, Callable[[Written, Tensor], Tensor]] = {
    "rsqrt": lambda m, x: normed(x),
    "quotient": lambda m, x: shared(x, lambda c: c / torch.sqrt((c * c).mean(-1, keepdim=True) + EPS)),
    "one over": lambda m, x: shared(x, lambda c: (1.0 / torch.sqrt(c.square().mean(2, keepdim=True) + EPS)) * c),
    "sums": lambda m, x: (lambda c: c * torch.rsqrt((c * c).sum(-1, keepdim=True) / x.shape[-1] + EPS))(
        x - x.sum(-1, keepdim=True) / x.shape[-1]
    ),
    "variance": lambda m, x: centred(x) / torch.sqrt(x.var(-1, correction=0, keepdim=True) + EPS),
    "biased variance": lambda m, x: centred(x) * torch.rsqrt(x.var(-1, unbiased=False, keepdim=True) + EPS),
    "stored epsilon": lambda m, x: shared(x, lambda c: c * torch.rsqrt(m.eps + c.pow(2).mean(-1, keepdim=True))),
    "gain": lambda m, x: m.gain * normed(x),
    "gain and shift": lambda m, x: normed(x) * m.gain + m.shift,
    "gain of three axes": lambda m, x: normed(x) * m.gain.view(1, 1, -1) + m.shift.view(1, 1, -1),
    "shift alone": lambda m, x: normed(x) + m.shift,
    "in the stream": lambda m, x: x + (m.gain * normed(x) + m.shift),
}


def written(*names: str) -> Written:
    """The forms of these names, each of an input of its own."""
    module = randomised(
        Written(
            lambda m, x: [FORMS[name](m, (1.0 + i) * x) for i, name in enumerate(names)],
            gain=nn.Parameter(torch.ones(WIDTH)),
            shift=nn.Parameter(torch.ones(WIDTH)),
            eps=torch.empty(1),
        )
    )
    module.eps.fill_(EPS)
    return module


def norms(program: Program) -> list[fx.Node]:
    return list(program.graph.find_nodes(op="call_function", target=LAYER_NORM))


@pytest.mark.parametrize("free", [None, {"x": {0: "batch", 1: "length"}}], ids=["fixed", "free"])
def test_every_spelling_is_one_operator(free: Any) -> None:
    after = {
        "aten.layer_norm": len(FORMS),
        "aten.rsqrt": 0,
        "aten.sqrt": 0,
        "aten.sub.Tensor": 0,
        "aten.var.correction": 0,
    }
    before = {"aten.layer_norm": 0}
    run = assert_rewrites(RecognizeLayerNorm(), written(*FORMS), (X,), before=before, after=after, dynamic=free)
    for node in norms(run.program):
        assert node.args[1] == [WIDTH] and node.args[4] == pytest.approx(EPS)
    with_shift = {"gain and shift", "gain of three axes", "in the stream"}
    assert [node.args[3] is not None for node in norms(run.program)] == [name in with_shift for name in FORMS]


@pytest.mark.parametrize("form", [decomposed, undecomposed])
def test_in_programs_of_other_exports(form: Callable[..., Program]) -> None:
    program = canonical(form(written("rsqrt", "quotient", "gain and shift"), X))
    assert_rewrites(RecognizeLayerNorm(), program, before={"aten.layer_norm": 0}, after={"aten.layer_norm": 3})


def test_rms_norms_and_layer_norms_are_told_apart() -> None:
    def forward(m: Written, x: Tensor) -> list[Tensor]:
        return [normed(x), x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS)]

    program = capture(Written(forward).eval(), (X,))
    first = run_passes(program, [RecognizeLayerNorm(), RecognizeRmsNorm()])
    second = run_passes(program, [RecognizeRmsNorm(), RecognizeLayerNorm()])
    for run in (first, second):
        assert [len(record.applied) for record in run.records] == [1, 1]
        assert [record.refusal_counts for record in run.records][0] == {"not-a-norm": 1}


def test_a_constant_row_and_a_zero_row() -> None:
    rows = torch.stack([torch.zeros(WIDTH), torch.ones(WIDTH), torch.full((WIDTH,), -1e-4)])[None]
    program = capture(written("gain and shift"), (rows,))
    run = run_passes(program, [RecognizeLayerNorm()])
    assert len(norms(run.program)) == 1
    torch.testing.assert_close(run.program.run(rows), program.run(rows), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_between_casts_it_stays_in_float32(dtype: torch.dtype) -> None:
    """As Cohere writes it."""
    module = Written(
        lambda m, x: (m.gain.float() * normed(x.float())).to(x.dtype), gain=nn.Parameter(torch.ones(WIDTH))
    )
    module = randomised(module).to(dtype)
    run = assert_rewrites(RecognizeLayerNorm(), module, (X.to(dtype),), before={}, after={"aten.layer_norm": 1})
    assert norms(run.program)[0].meta["val"].dtype is torch.float32


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    form=st.sampled_from(sorted(FORMS)),
    width=st.integers(1, 5),
    rows=st.integers(1, 3),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
)
def test_any_shape(form: str, width: int, rows: int, dtype: torch.dtype, scale: float) -> None:
    module = written(form)
    module.gain, module.shift = nn.Parameter(normal(width, seed=width)), nn.Parameter(normal(width, seed=1 + width))
    x = scale * normal(2, rows, width)
    assert_rewrites(RecognizeLayerNorm(), module.to(dtype), (x.to(dtype),), before={}, after={"aten.layer_norm": 1})


REFUSED: dict[str, tuple[str, Callable[[Written, Tensor], object]]] = {
    "no mean": ("not-a-norm", lambda m, x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS)),
    "difference of moments": (
        "not-a-norm",
        lambda m, x: centred(x) * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) - x.mean(-1, keepdim=True).pow(2) + EPS),
    ),
    "variance of another": ("not-a-norm", lambda m, x: centred(x) * torch.rsqrt(variance(x.sin()) + EPS)),
    "scales what is not centred": (
        "not-a-norm",
        lambda m, x: x * torch.rsqrt(x.var(-1, correction=0, keepdim=True) + EPS),
    ),
    "cube": ("not-a-norm", lambda m, x: shared(x, lambda c: c * torch.rsqrt(c.pow(3).mean(-1, keepdim=True) + EPS))),
    "mean of rows": (
        "axis-mismatch",
        lambda m, x: (lambda c: c * torch.rsqrt(c.pow(2).mean(-1, keepdim=True) + EPS))(x - x.mean(1, keepdim=True)),
    ),
    "squares of rows": (
        "axis-mismatch",
        lambda m, x: shared(x, lambda c: c * torch.rsqrt(c.pow(2).mean(1, keepdim=True) + EPS)),
    ),
    "variance of rows": (
        "axis-mismatch",
        lambda m, x: centred(x) * torch.rsqrt(x.var(1, correction=0, keepdim=True) + EPS),
    ),
    "sample": ("unsupported-spelling", lambda m, x: centred(x) * torch.rsqrt(x.var(-1, keepdim=True) + EPS)),
    "no epsilon": (
        "unsupported-spelling",
        lambda m, x: shared(x, lambda c: c * torch.rsqrt(c.pow(2).mean(-1, keepdim=True))),
    ),
    "negative epsilon": (
        "unsupported-spelling",
        lambda m, x: shared(x, lambda c: c * torch.rsqrt(c.pow(2).mean(-1, keepdim=True) + -EPS)),
    ),
    "twice the mean": (
        "unsupported-spelling",
        lambda m, x: (lambda c: c * torch.rsqrt(c.pow(2).mean(-1, keepdim=True) + EPS))(
            torch.sub(x, x.mean(-1, keepdim=True), alpha=2)
        ),
    ),
    "computed epsilon": (
        "not-constant",
        lambda m, x: shared(x, lambda c: c * torch.rsqrt(c.pow(2).mean(-1, keepdim=True) + x[..., :1].abs())),
    ),
    "centred read elsewhere": (
        "multiple-readers",
        lambda m, x: shared(x, lambda c: c * torch.rsqrt(c.pow(2).mean(-1, keepdim=True) + EPS) + c.sin()),
    ),
    "mean read elsewhere": (
        "multiple-readers",
        lambda m, x: (lambda mu: (lambda c: c * torch.rsqrt(c.pow(2).mean(-1, keepdim=True) + EPS) + mu.sin())(x - mu))(
            x.mean(-1, keepdim=True)
        ),
    ),
    "centred returned": (
        "graph-output",
        lambda m, x: shared(x, lambda c: (c * torch.rsqrt(c.pow(2).mean(-1, keepdim=True) + EPS), c)),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name: str) -> None:
    code, forward = REFUSED[name]
    assert_refuses(RecognizeLayerNorm(), Written(forward).eval(), (X,), code=code)


def test_refuses_sixteen_bits() -> None:
    module = Written(lambda m, x: normed(x)).eval()
    assert_refuses(RecognizeLayerNorm(), module, (X.bfloat16(),), code="unsupported-spelling")


def test_refuses_a_free_number_of_features() -> None:
    module, free = Written(lambda m, x: normed(x)).eval(), {"x": {2: "features"}}
    dims: dict[str, tuple[int, int | None]] = {"features": (2, 16)}
    assert_refuses(RecognizeLayerNorm(), module, (X,), code="dynamic-shape", dynamic=free, dims=dims)


def test_refuses_a_node_without_recorded_shape() -> None:
    program = capture(Written(lambda m, x: normed(x.chunk(2, -1)[1])).eval(), (X,))
    del program.node("getitem_1").meta["val"]
    assert_refuses(RecognizeLayerNorm(), program, code="missing-metadata")
