"""Layer norms of a stream turn into RMS norms: what is centred, what is kept, and that nothing changes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from flowopt.ir.evaluate import evaluate
from flowopt.ir.text import operator_census
from flowopt.passes.fold.fold_norm_affine import FoldNormAffine
from flowopt.passes.fold.fold_norm_mean import FoldNormMean
from flowopt.pipeline.runner import run_passes
from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.rewrite import RewritePass
from flowopt.testing import assert_rewrites
from flowopt.verification.verify_passes import VerifyPasses
from tests.lowering.build import build
from tests.passes.fold.residual import EPS, WIDTH, Block, Stack, ids, norm, pre
from tests.passes.programs import Written, canonical, decomposed, normal, randomised, undecomposed

X = normal(2, 4, WIDTH)


def norms(program: Program) -> list[fx.Node]:
    return list(program.graph.find_nodes(op="call_function", target=torch.ops.aten.rms_norm.default))


def turned(module: nn.Module, *inputs: Tensor, count: int, **more: Any) -> Program:
    """After the pass: that many layer norms are RMS norms, and no mean is left."""
    before, after = {"aten.layer_norm": count}, {"aten.layer_norm": 0, "aten.rms_norm": count, "aten.mean.dim": 0}
    return assert_rewrites(FoldNormMean(), randomised(module), inputs, before=before, after=after, **more).program


def sequence(m: Stack, x: Tensor, i: int) -> Tensor:
    x = x + m.blocks[i](m.norms[i](x))
    return x + m.blocks[i + m.depth](m.norms[i + m.depth](x))


def parallel(m: Stack, x: Tensor, i: int) -> Tensor:
    y = m.norms[i](x)
    return x + m.blocks[i](y) + m.blocks[i + m.depth](y)


def subtracted(m: Stack, x: Tensor, i: int) -> Tensor:
    return x - 0.5 * m.blocks[i](m.norms[i](x))


def gated_by_token(m: Stack, x: Tensor, i: int) -> Tensor:
    y = m.norms[i](x)
    return x + y[..., :1].sigmoid() * m.blocks[i](y)


def chosen(m: Stack, x: Tensor, i: int) -> Tensor:
    y = m.norms[i](x)
    return torch.where(y[..., :1] > 0, x, m.blocks[i](y))


def turned_over(m: Stack, x: Tensor, i: int) -> Tensor:
    return (x.transpose(0, 1) + m.blocks[i](m.norms[i](x.transpose(0, 1)))).transpose(0, 1).roll(1, 1)


STEPS: dict[str, tuple[Callable[[Stack, Tensor, int], Tensor], int]] = {
    "pre": (pre, 3),
    "sequence": (sequence, 5),
    "parallel": (parallel, 3),
    "subtracted": (subtracted, 3),
    "gated by token": (gated_by_token, 3),
    "chosen": (chosen, 3),
    "turned over": (turned_over, 3),
}


@pytest.mark.parametrize("name", STEPS)
def test_every_norm_of_a_stream_turns(name: str) -> None:
    step, count = STEPS[name]
    turned(Stack(step), ids(), count=count)


@pytest.mark.parametrize("form", [decomposed, undecomposed])
def test_in_programs_of_other_exports(form: Callable[..., Program]) -> None:
    program = canonical(form(randomised(Stack()), ids()))
    after = {"aten.layer_norm": 0, "aten.rms_norm": 3}
    assert_rewrites(FoldNormMean(), program, before={"aten.layer_norm": 3}, after=after)


def test_a_class_token_a_convolution_and_a_selection_belong_to_the_stream() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        patches = m.patches(x).flatten(2).transpose(1, 2)
        stream = torch.cat([m.token.expand(x.shape[0], -1, -1), patches], dim=1) + m.places
        stream = stream + m.block(m.first(stream))
        out: Tensor = m.head(m.last(stream[:, 0]))
        return out

    module = Written(
        forward,
        patches=nn.Conv2d(3, WIDTH, 2, 2),
        token=nn.Parameter(torch.zeros(1, 1, WIDTH)),
        places=nn.Parameter(torch.zeros(1, 5, WIDTH)),
        block=Block(),
        first=norm(),
        last=norm(),
        head=nn.Linear(WIDTH, 3),
    )
    free, dims = {"x": {0: "batch"}}, {"batch": (1, 8)}
    turned(module, normal(2, 3, 4, 4), count=2, dynamic=free, dims=dims)


def test_tokens_may_be_averaged_before_the_last_norm() -> None:
    class Pooled(Stack):
        def forward(self, ids: Tensor) -> Tensor:
            x = self.embedded(ids)
            for i in range(self.depth):
                x = pre(self, x, i)
            out: Tensor = self.head(self.last(x[:, 1:].mean(1)))
            return out

    before, after = {"aten.layer_norm": 3}, {"aten.layer_norm": 0, "aten.rms_norm": 3, "aten.mean.dim": 1}
    assert_rewrites(FoldNormMean(), randomised(Pooled(pre)), (ids(),), before=before, after=after)


def test_gain_shift_and_epsilon_stay_those_of_each_norm() -> None:
    epsilons = (1e-12, 1e-6, 1e-5)
    module = randomised(Stack(depth=3, eps=epsilons))
    program = turned(module, ids(), count=4)
    assert [node.args[3] for node in norms(program)] == [*epsilons, EPS]
    gains = [program.constant(node.args[2]) for node in norms(program) if isinstance(node.args[2], fx.Node)]
    wanted = [m.weight.double() for m in (*module.norms[:3], module.last)]
    torch.testing.assert_close(torch.stack(gains), torch.stack(wanted))


def test_what_writes_into_the_stream_has_no_mean() -> None:
    program = turned(Stack(), ids(), count=3)
    values: dict[str, Tensor] = {}

    def observe(node: fx.Node, value: Any) -> None:
        values[node.name] = value

    evaluate(program.graph, program.read, {"ids": ids()}, observe=observe)
    for node in norms(program):
        stream = values[str(node.args[0])]
        assert stream.mean(-1).abs().max() < 1e-6 * stream.square().mean().sqrt()


def test_stored_positions_that_are_looked_up_are_stored_vectors() -> None:
    class Looked(Stack):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(9, WIDTH)
            self.register_buffer("numbers", torch.arange(2, 7))

        def embedded(self, ids: Tensor) -> Tensor:
            return super().embedded(ids) + self.table(self.numbers)

    turned(Looked(), ids(), count=3)


def test_a_tied_table_stays_what_it_is_for_the_head() -> None:
    class Tied(Stack):
        def forward(self, ids: Tensor) -> Tensor:
            x = pre(self, self.embedded(ids), 0)
            return self.last(x) @ self.tokens.weight.t()

    module = randomised(Tied())
    program = turned(module, ids(), count=2)
    kept = [t for t in program.tensors.values() if t.shape == module.tokens.weight.shape]
    assert any(torch.equal(t, module.tokens.weight) for t in kept) and len(kept) == 2


def test_a_layer_that_is_called_twice_is_centred_where_it_writes_alone() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        stream = m.shared(x)
        stream = stream + m.shared(m.first(stream))
        out: Tensor = m.head(m.shared(m.last(stream)))
        return out

    module = Written(forward, shared=nn.Linear(WIDTH, WIDTH), first=norm(), last=norm(), head=nn.Linear(WIDTH, 3))
    turned(module, X, count=2)


def test_one_computed_writer_is_centred_at_run_time_for_two_norms() -> None:
    class Activated(Stack):
        def embedded(self, ids: Tensor) -> Tensor:
            return nn.functional.gelu(self.tokens(ids)) + self.places

    before, after = {"aten.layer_norm": 3}, {"aten.layer_norm": 0, "aten.rms_norm": 3, "aten.mean.dim": 1}
    run = assert_rewrites(FoldNormMean(), randomised(Activated()), (ids(),), before=before, after=after)
    assert "gelu is centred at run time" in run.records[0].applied[0].summary


def test_an_input_may_be_the_computed_writer() -> None:
    def forward(m: Written, x: Tensor, y: Tensor) -> Tensor:
        stream = x + m.block(m.first(x)) * y
        out: Tensor = m.head(m.last(stream))
        return out

    module = Written(forward, block=Block(), first=norm(), last=norm(), head=nn.Linear(WIDTH, 3))
    after = {"aten.layer_norm": 0, "aten.rms_norm": 2, "aten.mean.dim": 1}
    inputs = (X, normal(2, 4, 1, seed=1))
    assert_rewrites(FoldNormMean(), randomised(module), inputs, before={"aten.layer_norm": 2}, after=after)


def test_a_norm_without_gain_and_shift_is_centred_already() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        stream = m.entry(x.sin())
        stream = stream + m.block(m.first(stream))
        out: Tensor = m.head(m.last(stream))
        return out

    module = Written(
        forward, entry=norm(affine=False), block=Block(), first=norm(), last=norm(), head=nn.Linear(WIDTH, 3)
    )
    before, after = {"aten.layer_norm": 3}, {"aten.layer_norm": 1, "aten.rms_norm": 2, "aten.mean.dim": 0}
    assert_rewrites(FoldNormMean(), randomised(module), (X,), before=before, after=after)


def test_a_norm_behind_embeddings_turns_where_the_blocks_are_post_norm() -> None:
    class Post(Stack):
        def forward(self, ids: Tensor) -> Tensor:
            x = self.last(self.embedded(ids))
            for i in range(self.depth):
                x = self.norms[i](x + self.blocks[i](x))
            out: Tensor = self.head(x)
            return out

    before, after = {"aten.layer_norm": 3}, {"aten.layer_norm": 2, "aten.rms_norm": 1}
    run = assert_rewrites(FoldNormMean(), randomised(Post()), (ids(),), before=before, after=after)
    assert run.records[0].refusal_counts == {"post-norm": 2}


def test_a_stream_is_one_site_and_its_summary_counts() -> None:
    run = run_passes(capture(randomised(Stack()), (ids(),)), [FoldNormMean()], [VerifyPasses()])
    (applied,) = run.records[0].applied
    assert run.records[0].outcome == "kept"
    assert applied.summary == "3 norms; centred 3 layers and 1 stored tensor"


def test_after_gains_folded() -> None:
    passes: list[RewritePass[Any]] = [FoldNormAffine(), FoldNormMean()]
    run = run_passes(capture(randomised(Stack()), (ids(),)), passes, [VerifyPasses()])
    assert [record.outcome for record in run.records] == ["kept", "kept"]
    assert [node.args[2] for node in norms(run.program)] == [None] * 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_sixteen_bits(dtype: torch.dtype) -> None:
    module = randomised(Stack()).to(dtype)
    run = run_passes(capture(module, (ids(),)), [FoldNormMean()], [VerifyPasses()])
    assert run.records[0].outcome == "kept", run.records[0].reason


def test_rows_without_variance_stay_finite_and_equal() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        stream = m.entry(x)
        out: Tensor = m.last(stream + m.block(m.first(stream)))
        return out

    module = Written(forward, entry=nn.Linear(WIDTH, WIDTH), block=Block(), first=norm(), last=norm())
    randomised(module)
    with torch.no_grad():
        module.entry.weight.fill_(0.5)
        module.entry.bias.fill_(2.0)
    x = torch.stack([torch.zeros(WIDTH), torch.ones(WIDTH), normal(WIDTH)])[None]
    program = capture(module, (x,))
    run = run_passes(program, [FoldNormMean()])
    assert len(norms(run.program)) == 2
    torch.testing.assert_close(run.program.run(x), program.run(x), rtol=1e-5, atol=1e-5)


def test_it_lowers_without_a_mean(tmp_path: Path) -> None:
    program = capture(randomised(Stack()), (ids(),), dynamic={"ids": {0: "batch"}}, dims={"batch": (1, 8)})
    run = run_passes(program, [FoldNormMean()])
    artifact, lowered = build(run.program, tmp_path / "model")
    assert lowered.op_census["RMSNormalization"] == 3
    assert not {"LayerNormalization", "ReduceMean", "Sub"} & set(lowered.op_census)
    torch.testing.assert_close(artifact.run(ids(1)), program.run(ids(1)), rtol=1e-5, atol=1e-5)


_branch = st.sampled_from(["block", "wide", "gate", "none"])
_place = st.sampled_from(["pre", "pre", "pre", "post", "peri", "raw"])


def branched(m: Written, branch: str, i: int, read: Tensor) -> Tensor:
    if branch == "none":
        return 0.5 * read
    out: Tensor = (m.shared if branch == "block" else m.blocks[i])(read)
    return read[..., :1].sigmoid() * out if branch == "gate" else out


def stacked(steps: list[tuple[str, str]], *, entry: str, tap: bool) -> nn.Module:
    """A stack of branches: at each step one kind of branch, and where its norm stands."""

    def forward(m: Written, ids: Tensor) -> list[Tensor]:
        x = m.tokens(ids) + m.places if entry == "layers" else m.tokens(ids).tanh() * m.scale
        for i, (branch, place) in enumerate(steps):
            read = m.norms[i](x) if place in ("pre", "peri") else x
            y = branched(m, branch, i, read)
            if place == "peri":
                y = m.outer(y)
            x = x + y
            if place == "post":
                x = m.norms[i](x)
        out = [m.head(m.last(x))]
        return [*out, x.sum(-1)] if tap else out

    module = Written(
        forward,
        tokens=nn.Embedding(11, WIDTH),
        places=nn.Parameter(torch.zeros(1, 5, WIDTH)),
        scale=nn.Parameter(torch.zeros(WIDTH)),
        norms=nn.ModuleList(norm() for _ in steps),
        blocks=nn.ModuleList(Block() for _ in steps),
        shared=Block(),
        outer=norm(),
        last=norm(),
        head=nn.Linear(WIDTH, 3),
    )
    return randomised(module)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    steps=st.lists(st.tuples(_branch, _place), min_size=1, max_size=4),
    entry=st.sampled_from(["layers", "layers", "computed"]),
    tap=st.sampled_from([False, False, True]),
)
def test_any_stack_computes_the_same(steps: list[tuple[str, str]], entry: str, tap: bool) -> None:
    program = capture(stacked(steps, entry=entry, tap=tap), (ids(),))
    run = run_passes(program, [FoldNormAffine(), FoldNormMean(), FoldNormMean()], [VerifyPasses()])
    assert [record.outcome for record in run.records[1:]] in (["kept", "unchanged"], ["unchanged"] * 2, ["kept"] * 2)
    assert not run.records[2].applied
    if all(place == "pre" for _, place in steps) and all(branch != "none" for branch, _ in steps) and not tap:
        assert "aten.layer_norm" not in operator_census(run.program.graph)
