from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from flowopt.ir.text import operator_census
from flowopt.passes.fold.fold_norm_affine import FoldNormAffine
from flowopt.passes.recognize.recognize_rms_norm import RecognizeRmsNorm
from flowopt.pipeline.presets import PRESETS
from flowopt.pipeline.runner import run_passes
from flowopt.pipeline.text import parse_pipeline
from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.testing import assert_rewrites
from flowopt.verification.verify_passes import VerifyPasses
from tests.lowering.build import build
from tests.passes.fold.norms import GemmaRMSNorm, HuggingFaceRMSNorm, Read
from tests.passes.programs import Written, canonical, decomposed, normal, randomised, together, undecomposed
from tests.passes.recognize.rms_norm import EPS, mean_of_squares, normed, root
from tests.zoo.models import ZOO

WIDTH = 6
X = normal(2, 4, WIDTH)
# Small beside epsilon, so that an epsilon which is lost or moved shows.
SMALL = 0.1 * X
RMS_NORM = torch.ops.aten.rms_norm.default
FORMS: dict[str, Callable[[Written, Tensor], Tensor]] = {
    "rsqrt": lambda m, x: x * torch.rsqrt(mean_of_squares(x) + EPS),
    "rsqrt first": lambda m, x: torch.rsqrt(mean_of_squares(x) + EPS) * x,
    "quotient": lambda m, x: x / root(x),
    "reciprocal": lambda m, x: x * root(x).reciprocal(),
    "one over": lambda m, x: (1.0 / root(x)) * x,
    "product": lambda m, x: x * torch.rsqrt((x * x).mean(-1, keepdim=True) + EPS),
    "square": lambda m, x: x * torch.rsqrt(EPS + x.square().mean(2, keepdim=True)),
    "float exponent": lambda m, x: x * torch.rsqrt((x**2.0).mean((-1,), keepdim=True) + EPS),
    "sum": lambda m, x: x * torch.rsqrt((x * x).sum(-1, keepdim=True) / x.shape[-1] + EPS),
    "stored epsilon": lambda m, x: x * torch.rsqrt(m.eps + mean_of_squares(x)),
    "gain": lambda m, x: m.gain * (x * torch.rsqrt(mean_of_squares(x) + EPS)),
    "gain after": lambda m, x: x / root(x) * m.gain,
    "gain of three axes": lambda m, x: x / root(x) * m.gain.view(1, 1, -1),
    "one plus the gain": lambda m, x: normed(x) * (1.0 + m.gain),
    "in the stream": lambda m, x: x + normed(x) * m.gain,
}


def written(*names: str) -> Written:
    """The forms of these names, each of an input of its own."""
    module = randomised(
        Written(
            lambda m, x: [FORMS[name](m, (1.0 + i) * x) for i, name in enumerate(names)],
            gain=nn.Parameter(torch.ones(WIDTH)),
            eps=torch.empty(1),
        )
    )
    module.eps.fill_(EPS)
    return module


def norms(program: Program) -> list[fx.Node]:
    return list(program.graph.find_nodes(op="call_function", target=RMS_NORM))


@pytest.mark.parametrize("free", [None, {"x": {0: "batch", 1: "length"}}], ids=["fixed", "free"])
def test_every_spelling_is_one_operator(free: Any) -> None:
    module = written(*FORMS)
    after = {"aten.rms_norm": len(FORMS), "aten.rsqrt": 0, "aten.sqrt": 0, "aten.reciprocal": 0, "aten.div.Tensor": 0}
    run = assert_rewrites(RecognizeRmsNorm(), module, (SMALL,), before={"aten.rms_norm": 0}, after=after, dynamic=free)
    assert len(run.program.dims) == (0 if free is None else 2)
    for node in norms(run.program):
        assert node.args[1] == [WIDTH] and node.args[3] == pytest.approx(EPS)
    assert [n.args[2] is None for n in norms(run.program)] == [name in list(FORMS)[:10] for name in FORMS]


@pytest.mark.parametrize("form", [decomposed, undecomposed])
def test_in_programs_of_other_exports(form: Callable[..., Program]) -> None:
    program = canonical(form(written(*FORMS), SMALL))
    assert_rewrites(RecognizeRmsNorm(), program, before={"aten.rms_norm": 0}, after={"aten.rms_norm": len(FORMS)})


def test_the_gain_is_the_stored_tensor_itself() -> None:
    run = run_passes(capture(written("gain"), (X,)), [RecognizeRmsNorm()])
    assert sorted(run.program.tensors) == ["gain"]
    assert operator_census(run.program.graph)["aten.rms_norm"] == 1


@pytest.mark.parametrize("value", [1e-6, 1e-5, 1e-12, 0.2])
def test_epsilon_is_the_number_that_was_written(value: float) -> None:
    module = Written(lambda m, x: x * torch.rsqrt(mean_of_squares(x) + value)).eval()
    run = assert_rewrites(RecognizeRmsNorm(), module, (1e-3 * X,), before={}, after={"aten.rms_norm": 1})
    assert norms(run.program)[0].args[3] == value


def test_a_stored_epsilon_is_the_number_in_its_dtype() -> None:
    module = Written(lambda m, x: x / torch.sqrt(mean_of_squares(x) + m.eps), eps=torch.tensor(1e-6)).eval()
    run = assert_rewrites(RecognizeRmsNorm(), module, (1e-3 * X,), before={}, after={"aten.rms_norm": 1})
    assert norms(run.program)[0].args[3] == float(torch.tensor(1e-6))


def test_a_constant_row_and_a_zero_row() -> None:
    rows = torch.stack([torch.zeros(WIDTH), torch.ones(WIDTH), torch.full((WIDTH,), -1e-4)])
    program = capture(written("gain"), (rows[None],))
    run = run_passes(program, [RecognizeRmsNorm()])
    torch.testing.assert_close(run.program.run(rows[None]), program.run(rows[None]), rtol=1e-6, atol=0)


def test_a_gain_that_is_no_stored_vector_of_the_norms_dtype_stays() -> None:
    def forward(m: Written, x: Tensor) -> list[Tensor]:
        return [
            normed(x) * x.sigmoid(),
            normed(2.0 * x) * 3.0,
            normed(3.0 * x) * m.of_rows,
            normed(4.0 * x) * m.gain.double(),
            normed(5.0 * x) * m.gain.bfloat16(),
            (lambda y: y * m.gain + y)(normed(6.0 * x)),
        ]

    module = Written(forward, gain=nn.Parameter(torch.ones(WIDTH)), of_rows=nn.Parameter(torch.ones(4, 1)))
    run = assert_rewrites(RecognizeRmsNorm(), randomised(module), (X,), before={}, after={"aten.rms_norm": 6})
    assert all(n.args[2] is None for n in norms(run.program))


def t5(m: Written, x: Tensor) -> Tensor:
    """As in transformers' T5: only the squares are cast, the product widens by itself."""
    z = x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + EPS)
    weighted: Tensor = m.gain * z.to(m.gain.dtype)
    return weighted


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_norms_stay_in_float32_between_their_casts(dtype: torch.dtype) -> None:
    parts: list[nn.Module] = [
        Written(
            lambda m, x: m.gain * (lambda z: (z / root(z)).to(x.dtype))(x.float()), gain=nn.Parameter(torch.ones(6))
        ),
        Written(t5, gain=nn.Parameter(torch.ones(WIDTH))),
        Written(lambda m, x: (normed(x.float()) * (1.0 + m.gain.float())).type_as(x), gain=nn.Parameter(torch.ones(6))),
    ]
    module, inputs = together([(randomised(part).to(dtype), normal(2, WIDTH, dtype=dtype, seed=3)) for part in parts])
    before = {"aten._to_copy": 6, "aten.type_as": 1}
    run = assert_rewrites(RecognizeRmsNorm(), module, inputs, before=before, after=before | {"aten.rms_norm": 3})
    assert [n.meta["val"].dtype for n in norms(run.program)] == [torch.float32] * 3
    # The gain that is applied after the cast is still applied there; that of 1 + w in float32 is the norm's.
    assert [n.args[2] is None for n in norms(run.program)] == [True, True, False]


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    form=st.sampled_from(sorted(FORMS)),
    width=st.integers(1, 5),
    shape=st.lists(st.integers(1, 3), max_size=2),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
)
def test_any_shape(form: str, width: int, shape: list[int], dtype: torch.dtype, scale: float) -> None:
    module = written(form)
    module.gain = nn.Parameter(normal(width, seed=width))
    x = scale * normal(*shape, 1, width)
    x = x if x.dim() == 3 else x.reshape(-1, 1, width)  # "square" counts its axis from the front
    assert_rewrites(RecognizeRmsNorm(), module.to(dtype), (x.to(dtype),), before={}, after={"aten.rms_norm": 1})


def test_a_non_contiguous_input_gives_what_the_module_gives() -> None:
    module, x = written("gain"), normal(WIDTH, 3, 2).permute(2, 1, 0)
    run = run_passes(capture(module, (x,)), [RecognizeRmsNorm()], [VerifyPasses()])
    assert run.records[0].outcome == "kept"
    (wanted,), (found,) = module(x), run.program.run(x).values()
    # A few roundings of float32 in each operator.
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)


def test_a_norm_that_is_called_twice_keeps_its_one_gain() -> None:
    norm = randomised(HuggingFaceRMSNorm(WIDTH))
    module = Written(lambda m, x: m.norm(m.norm(x).tanh()), norm=norm).eval()
    run = assert_rewrites(RecognizeRmsNorm(), module, (X,), before={"aten.rsqrt": 2}, after={"aten.rms_norm": 2})
    assert list(run.program.tensors) == ["norm.weight"]


@pytest.mark.parametrize("order", [(RecognizeRmsNorm, FoldNormAffine), (FoldNormAffine, RecognizeRmsNorm)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_before_and_after_the_gain_folds(order: tuple[Any, ...], dtype: torch.dtype) -> None:
    cases: list[tuple[nn.Module, Tensor]] = [
        (randomised(Read(norm(WIDTH), "none", "view")).to(dtype), X.to(dtype))
        for norm in (HuggingFaceRMSNorm, GemmaRMSNorm)
    ]
    module, inputs = together(cases)
    run = run_passes(capture(module, inputs), [p() for p in order], [VerifyPasses()])
    assert [r.outcome for r in run.records] == ["kept", "kept"]
    assert [len(r.applied) for r in run.records] == [2, 2]
    assert [n.args[2] for n in norms(run.program)] == [None, None]
    assert not [name for name in run.program.tensors if "norm" in name]


def test_it_lowers_to_the_rms_norm_of_onnx(tmp_path: Path) -> None:
    program = capture(written("gain", "quotient"), (X,), dynamic={"x": {0: "batch"}})
    artifact, lowered = build(run_passes(program, [RecognizeRmsNorm()]).program, tmp_path / "model")
    assert lowered.op_census["RMSNormalization"] == 2
    assert not {"Pow", "ReduceMean", "Sqrt", "Reciprocal"} & set(lowered.op_census)
    x = normal(3, 4, WIDTH, seed=1)
    torch.testing.assert_close(artifact.run(x), program.run(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "count"), [("llama", 5), pytest.param("t5", 5, marks=pytest.mark.slow)])
def test_every_norm_of_a_language_model(name: str, count: int) -> None:
    model = ZOO[name]()
    program = capture(model.module, (), model.kwargs, dynamic=model.dynamic, dims=model.dims)
    passes = parse_pipeline(",".join(PRESETS["exact"]))
    run = run_passes(program, passes)
    records = {r.name: r for r in run.records}
    assert len(records["recognize-rms-norm"].applied) == len(norms(run.program)) == count
    assert not records["recognize-rms-norm"].refused
    assert "aten.rsqrt" not in operator_census(run.program.graph)
    assert {r.code for r in records["fold-norm-affine"].refused} <= {"graph-output"}
