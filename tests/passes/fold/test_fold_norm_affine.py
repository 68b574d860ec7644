from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn import functional as F

from flowopt.analysis.norm_affine import LIBRARY_NORMS
from flowopt.passes.fold.fold_norm_affine import FoldNormAffine
from flowopt.pipeline.runner import PipelineRun, run_passes
from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.testing import assert_refuses, assert_rewrites
from flowopt.verification.verify_passes import VerifyPasses
from tests.passes.fold.norms import NORMS, PATHS, WIDTH, GemmaRMSNorm, Read, normed
from tests.passes.programs import Written, canonical, decomposed, normal, randomised, together

DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16])


def assert_folds(
    model: nn.Module | Program, *inputs: Tensor, linears: int = 1, norms: int = 1, **options: Any
) -> PipelineRun:
    """The pass fires at every norm, and nothing is left of the part called ``norm``."""
    counts = {"aten.linear": linears}
    run = assert_rewrites(FoldNormAffine(), model, inputs, before=counts, after=counts, **options)
    (record,) = run.records
    assert (len(record.applied), record.refused) == (norms, ())
    assert not [name for name in run.program.tensors if name.startswith("norm")]
    return run


def read_by(norm: nn.Module, *paths: str, bias: bool = True) -> Read:
    return randomised(Read(norm, *paths, bias=bias))


X = normal(2, 4, WIDTH)

# Right for every norm, reader and path between them.


@st.composite
def read_norms(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """A norm with its readers, and an input."""
    norm = NORMS[draw(st.sampled_from(sorted(NORMS)))](WIDTH)
    paths = draw(st.lists(st.sampled_from(sorted(PATHS)), min_size=1, max_size=2))
    module = randomised(Read(norm, *paths, bias=draw(st.booleans())), seed=draw(st.integers(0, 99)))
    dtype = draw(DTYPES)
    return module.to(dtype), normal(draw(st.integers(1, 3)), 4, WIDTH, dtype=dtype)


def assert_all_fold(cases: list[tuple[nn.Module, Tensor]]) -> None:
    module, inputs = together(cases)
    linears = sum(isinstance(part, nn.Linear) for part in module.modules())
    assert_folds(module, *inputs, linears=linears, norms=len(cases))


@settings(deadline=None, derandomize=True, max_examples=8)
@given(st.lists(read_norms(), min_size=2, max_size=3))
def test_any_norm_folds_into_any_readers(cases: list[tuple[nn.Module, Tensor]]) -> None:
    assert_all_fold(cases)


@pytest.mark.slow
@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(read_norms(), min_size=3, max_size=4))
def test_any_of_many_norms_folds_into_any_readers(cases: list[tuple[nn.Module, Tensor]]) -> None:
    assert_all_fold(cases)


def test_folds_through_every_path_at_once() -> None:
    assert_folds(read_by(nn.LayerNorm(WIDTH), *PATHS), X, linears=len(PATHS))


def test_library_norms_keep_their_epsilon() -> None:
    # Row 13 of the known miscompiles: it is the whole signal where activations are small.
    module, inputs = together([(read_by(NORMS[name](WIDTH), "none"), 1e-3 * X) for name in ("layer", "rms")])
    run = assert_folds(module, *inputs, linears=2, norms=2)
    kept = [n.args[-1] if n.target is torch.ops.aten.rms_norm.default else n.args[4] for n in library_norms(run)]
    assert kept == [0.1, 0.2]


def library_norms(run: PipelineRun) -> list[fx.Node]:
    return [n for n in run.program.graph.nodes if n.target in LIBRARY_NORMS]


def test_every_decomposed_norm_folds() -> None:
    norms = nn.ModuleList(make(WIDTH) for make in NORMS.values())
    paths = ("none", "transpose", "chunk", "squeeze-two")
    parts = nn.ModuleList(Read(norm, path) for norm, path in zip(norms, paths * 2, strict=False))
    module = randomised(Written(lambda m, x: [part(x) for part in m.parts], parts=parts))
    assert_folds(canonical(decomposed(module, X)), linears=len(NORMS), norms=len(NORMS))


def test_free_batch_and_sequence_fold() -> None:
    module = read_by(nn.LayerNorm(WIDTH), "view", "transpose", "first-token", "chunk")
    run = assert_folds(module, X, linears=4, dynamic={"x": {0: "batch", 1: "sequence"}}, dims={"sequence": (3, 99)})
    assert run.program.shape("output.1") == ("sequence", "batch", 4)


def test_a_gain_of_one_plus_minus_one_is_zero() -> None:
    module = read_by(GemmaRMSNorm(WIDTH), "none")
    module.get_parameter("norm.weight").data[2] = -1.0
    run = assert_folds(module, X)
    assert bool((run.program.tensors["layers.0.weight_1"][:, 2] == 0.0).all())


def test_bfloat16_norms_of_a_float32_stream_fold_below_the_cast() -> None:
    # Autocast in small: the stream and the norm are float32, the layers bfloat16.
    module = normed(lambda m, x: m.fc(m.norm(x).bfloat16()))
    module.fc.bfloat16()
    run = assert_folds(module, X)
    assert {t.dtype for t in run.program.tensors.values()} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gain_and_shift_written_after_a_bare_library_norm_fold(dtype: torch.dtype) -> None:
    def forward(m: Written, x: Tensor) -> list[Tensor]:
        z = F.rms_norm(x.float(), [WIDTH], eps=0.2).to(x.dtype)
        centred = F.layer_norm(x.float(), [WIDTH], eps=0.2).to(x.dtype)
        return [m.fc(m.norm.weight * z), m.other(centred * m.norm.weight + m.norm.bias)]

    module = normed(forward, other=nn.Linear(WIDTH, 3)).to(dtype)
    run = assert_folds(module, X.to(dtype), linears=2, norms=2)
    census = {n.target for n in run.program.graph.nodes if n.op == "call_function"}
    assert not census & {torch.ops.aten.mul.Tensor, torch.ops.aten.add.Tensor}


def test_each_folded_weight_is_rounded_once() -> None:
    module = normed(lambda m, x: m.fc(m.norm(x)))
    run = assert_folds(module, X)
    fc, norm = module.fc.double(), module.norm.double()
    assert torch.equal(run.program.tensors["fc.weight_1"], (fc.weight * norm.weight).float())
    assert torch.equal(run.program.tensors["fc.bias_1"], (fc.bias + fc.weight @ norm.bias).float())


def test_a_layer_without_bias_gets_one_for_a_shift() -> None:
    run = assert_folds(read_by(nn.LayerNorm(WIDTH), "none", bias=False), X)
    assert sorted(run.program.tensors) == ["layers.0.bias", "layers.0.weight_1"]


def test_a_norm_without_shift_leaves_biases_alone() -> None:
    module = read_by(nn.RMSNorm(WIDTH), "none")
    program = capture(module, (X,))
    run = assert_folds(program)
    assert run.program.tensors["layers.0.bias"] is program.tensors["layers.0.bias"]


def test_a_shift_without_gain_leaves_weights_equal() -> None:
    module = normed(lambda m, x: m.fc(F.layer_norm(x, (WIDTH,), None, m.norm.bias)))
    run = assert_folds(module, X)
    assert torch.equal(run.program.tensors["fc.weight_1"], module.fc.weight)


def test_a_non_contiguous_input_gives_what_the_module_gives() -> None:
    module = read_by(nn.LayerNorm(WIDTH), "none").double()
    x = X.double().mT.contiguous().mT
    run = assert_folds(module, x)
    torch.testing.assert_close(run.program.run_named({"x": x})["output.0"], module(x)[0], rtol=1e-12, atol=1e-12)


# Attention.


class Attention(nn.Module):
    """``nn.MultiheadAttention`` over the normalised input: of itself, or of another sequence."""

    def __init__(self, *, crossed: bool, need_weights: bool, **options: Any) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(WIDTH), nn.MultiheadAttention(WIDTH, 2, **options)
        self.crossed, self.need_weights = crossed, need_weights

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        y = self.norm(x)
        memory = context if self.crossed else y
        attended: Tensor = self.attention(y, memory, memory, need_weights=self.need_weights)[0]
        return attended


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("options", [{"batch_first": True}, {"bias": False}], ids=["batch-first", "no-bias"])
def test_packed_projection_of_self_attention_folds(need_weights: bool, options: dict[str, bool]) -> None:
    module = randomised(Attention(crossed=False, need_weights=need_weights, **options))
    run = assert_folds(module, X, linears=2)
    assert run.records[0].applied[0].summary == "folded into 1 layer"


def test_decomposed_packed_projection_folds() -> None:
    module = randomised(Attention(crossed=False, need_weights=True, batch_first=True))
    assert_folds(canonical(decomposed(module, X)), linears=2)


def test_cross_attention_folds_into_the_query_rows_alone() -> None:
    module = randomised(Attention(crossed=True, need_weights=True, batch_first=True))
    run = assert_folds(module, X, normal(2, 3, WIDTH, seed=1), linears=3)
    assert torch.equal(
        run.program.tensors["attention.in_proj_weight"], module.get_parameter("attention.in_proj_weight")
    )


# Call sites.


def test_a_shared_norm_folds_at_both_of_its_calls() -> None:
    module = normed(lambda m, x: m.fc(m.norm(x)) + m.other(m.norm(x.flip(0))), other=nn.Linear(WIDTH, 5))
    assert_folds(module, X, linears=2, norms=2)


def test_a_layer_called_behind_two_norms_gets_a_weight_for_each() -> None:
    module = normed(lambda m, x: m.fc(m.norm(x)) + m.fc(m.norm_b(x.flip(0))), norm_b=nn.LayerNorm(WIDTH))
    assert_folds(module, X, linears=2, norms=2)


def test_a_layer_that_also_reads_something_else_keeps_its_weight_there() -> None:
    module = normed(lambda m, x: m.fc(m.norm(x)) * m.fc(x))
    run = assert_folds(module, X, linears=2)
    assert torch.equal(run.program.tensors["fc.weight"], module.fc.weight)


def test_a_tied_head_is_untied_and_the_embedding_unchanged() -> None:
    module = randomised(
        Written(
            lambda m, ids: m.head(m.norm(m.table(ids))),
            table=nn.Embedding(7, WIDTH),
            norm=nn.LayerNorm(WIDTH),
            head=nn.Linear(WIDTH, 7, bias=False),
        )
    )
    module.head.weight = module.table.weight
    ids = torch.arange(6).reshape(2, 3)
    program = capture(module, (ids,))
    assert [name for name in program.tensors if name.endswith("weight")] == ["table.weight", "norm.weight"]
    run = assert_folds(program)
    assert run.program.tensors["table.weight"] is program.tensors["table.weight"]
    # The copy of the table and a bias of 7, less gain and shift.
    assert run.records[0].added_bytes == 4 * (7 * WIDTH + 7 - 2 * WIDTH)


def test_one_reader_that_is_not_linear_keeps_all_from_folding() -> None:
    def forward(m: Written, x: Tensor) -> tuple[Tensor, Tensor]:
        y = m.norm(x)
        return m.fc(y), F.gelu(y)

    assert_refuses(FoldNormAffine(), normed(forward), (X,), code="not-linear-reader")


def test_every_norm_is_a_site() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        returned: Tensor = m.second(m.fc(m.norm(x)))
        return returned * torch.rsqrt(x.square().mean())

    program = capture(normed(forward, second=nn.RMSNorm(5)), (X,))
    (record,) = run_passes(program, [FoldNormAffine()], [VerifyPasses()]).records
    assert len(record.applied) == 1
    assert record.refusal_counts == {"not-linear-reader": 1, "not-a-norm": 1}
    assert record.anchors == 3
