"""Frozen per-channel maps inside of residual streams vanish: where, into what, and that nothing changes."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from flowopt.ir.text import operator_census
from flowopt.passes.fold.absorb_post_norm import AbsorbPostNorm
from flowopt.pipeline.runner import PipelineRun, run_passes
from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.testing import assert_rewrites
from tests.passes.fold.affine_stacks import (
    AFFINE_STACKS,
    SPELLINGS,
    TOKENS,
    AffineSpec,
    FrozenMap,
    affine_stack,
    small_then_large,
)
from tests.passes.fold.graph_transformer import GraphTransformer, graph
from tests.passes.fold.residual import WIDTH, Block, ids
from tests.passes.programs import Written, canonical, normal, randomised, together

BATCH_NORM = "aten._native_batch_norm_legit_no_training"
# Sums of at most 64 products in float64, of values near 1.
TOLERANCE = 1e-10
FREE: dict[str, Any] = {"dynamic": {"x": {0: "batch"}}, "dims": {"batch": (1, 8)}}


def frozen(spelling: str = "mul and add", seed: int = 0, width: int = WIDTH) -> FrozenMap:
    return FrozenMap(width, spelling, 100 * seed)


def away_from_zero(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random parameters and statistics, in eval mode, the scales of norms between 0.5 and 2 in magnitude."""
    randomised(module, seed)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d):
            part.weight.data = part.weight.sign() * part.weight.abs().clamp(0.5, 2.0)
            part.weight.data[part.weight == 0] = 1.0
    return module


def absorbed(model: nn.Module | Program, *inputs: Tensor, census: dict[str, int], **more: Any) -> PipelineRun:
    """After the pass: the operators of ``census``, and no map."""
    program = model if isinstance(model, Program) else canonical(capture(model, inputs, **more))
    before = operator_census(program.graph)
    gone = {name: census.get(name, 0) for name in ("aten.mul.Tensor", "aten.div.Tensor", BATCH_NORM)}
    return assert_rewrites(AbsorbPostNorm(), program, before=dict(before), after=gone | census)


def compared(program: Program, module: nn.Module, *inputs: Tensor) -> None:
    """The rewritten program of a float64 module gives what the module gives."""
    with torch.no_grad():
        torch.testing.assert_close(program.run(*inputs), module(*inputs), rtol=TOLERANCE, atol=TOLERANCE)


# Whole models.


@pytest.mark.parametrize("depth", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_batch_norms_of_a_graph_transformer_vanish(depth: int) -> None:
    module = away_from_zero(GraphTransformer(depth=depth)).double()
    kinds, positions, adjacency = graph()
    inputs = (kinds, positions.double(), adjacency.double())
    names = {name: {0: "nodes"} for name in ("kinds", "positions")}
    free = {**names, "adjacency": {0: "nodes", 1: "nodes"}}
    program = canonical(capture(module, inputs, dynamic=free))
    before, gone = {BATCH_NORM: 2 * depth}, {BATCH_NORM: 0}
    after = assert_rewrites(AbsorbPostNorm(), program, before=before, after=gone).program
    assert after.shape("positions") == ("nodes", 3)
    for nodes in (6, 9):
        kinds, positions, adjacency = graph(nodes, seed=1)
        compared(after, module, kinds, positions.double(), adjacency.double())


class PostNormBlock(nn.Module):
    """Attention and a feed-forward network, each with a map behind the sum, as frozen norms leave a BERT block."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.block, self.first, self.second = Block(), frozen(seed=seed), frozen(seed=seed + 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x + self.attention(x, x, x, need_weights=False)[0])
        out: Tensor = self.second(x + self.block(x))
        return out


def bert(depth: int = 2) -> nn.Module:
    """Post-norm blocks behind embeddings with a layer norm, and a head on the first token."""
    torch.manual_seed(0)
    return Written(
        lambda m, x: m.head(m.blocks(m.norm(m.tokens(x) + m.places))[:, 0]),
        tokens=nn.Embedding(TOKENS, WIDTH),
        places=nn.Parameter(normal(1, 5, WIDTH)),
        norm=nn.LayerNorm(WIDTH),
        blocks=nn.Sequential(*(PostNormBlock(2 * i) for i in range(depth))),
        head=nn.Linear(WIDTH, 3),
    ).eval()


def test_maps_in_place_of_the_norms_of_post_norm_blocks_vanish() -> None:
    # Two residual sums in each block, and the positions.
    run = absorbed(bert(), ids(), census={"aten.add.Tensor": 5, "aten.layer_norm": 1}, **FREE)
    assert run.program.shape("x") == ("batch", 5)
    assert run.records[0].applied[0].summary == "4 maps; scaled 8 layers and 0 stored tensors"


# Spellings and places.


def post(m: Written, x: Tensor) -> Tensor:
    for block, map_ in zip(m.blocks, m.maps, strict=True):
        x = map_(x + block(x))
    return x


def post_norm(*spellings: str, end: Any = lambda m, x: m.head(x), **parts: Any) -> Written:
    """A layer, blocks with a map behind each sum, and an end."""
    torch.manual_seed(0)
    own: dict[str, Any] = {
        "entry": nn.Linear(WIDTH, WIDTH),
        "blocks": nn.ModuleList(Block() for _ in spellings),
        "maps": nn.ModuleList(frozen(one, i) for i, one in enumerate(spellings)),
        "head": nn.Linear(WIDTH, 3),
    }
    return Written(lambda m, x: end(m, post(m, m.entry(x))), **own | parts).eval()


X = normal(2, 4, WIDTH)


def test_every_spelling_vanishes() -> None:
    module = post_norm(*SPELLINGS)
    absorbed(module, X, census={"aten.add.Tensor": len(SPELLINGS), "aten.sub.Tensor": 0})


def test_a_shift_goes_into_the_writer_before_it_and_readers_keep_their_biases() -> None:
    run = absorbed(post_norm("mul and add", "mul and add"), X, census={"aten.add.Tensor": 2})
    biases = {name for name in run.program.tensors if "bias" in name}
    kept = {"entry.bias", "blocks.0.up.bias", "blocks.1.up.bias", "head.bias"}
    assert biases == kept | {f"blocks.{i}.down.bias_1" for i in range(2)}


def test_before_the_first_map_nothing_is_scaled() -> None:
    module = post_norm("mul and add")
    program = canonical(capture(module, (X,)))
    run = absorbed(program, census={"aten.add.Tensor": 1})
    for name in ("entry.weight", "blocks.0.up.weight", "blocks.0.down.weight"):
        assert run.program.tensors[name] is program.tensors[name]


def test_a_map_before_layers_that_read_an_unscaled_stream_goes_into_them() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        x = m.entry(x)
        x = x + m.block(m.map(x))
        out: Tensor = m.head(m.norm(x))
        return out

    parts = {"block": Block(), "map": frozen(), "norm": nn.LayerNorm(WIDTH), "head": nn.Linear(WIDTH, 3)}
    absorbed(randomised(Written(forward, entry=nn.Linear(WIDTH, WIDTH), **parts)), X, census={"aten.add.Tensor": 1})


def test_class_tokens_positions_and_convolutions_are_writers() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        patches = m.patches(x).flatten(2).transpose(1, 2)
        stream = torch.cat([m.token.expand(x.shape[0], -1, -1), patches], dim=1) * m.scale + m.places
        stream = m.map(stream + m.block(stream))
        out: Tensor = m.head(stream[:, 0])
        return out

    torch.manual_seed(0)
    module = Written(
        forward,
        patches=nn.Conv2d(3, WIDTH, 2, 2),
        token=nn.Parameter(normal(1, 1, WIDTH)),
        places=nn.Parameter(normal(1, 5, WIDTH)),
        scale=nn.Parameter(1.5 + normal(WIDTH).abs()),
        block=Block(),
        map=frozen(),
        head=nn.Linear(WIDTH, 3),
    ).eval()
    run = absorbed(module, normal(2, 3, 4, 4), census={"aten.add.Tensor": 2}, **FREE)
    assert "and 1 stored tensor" in run.records[0].applied[0].summary


def test_a_convolution_over_channels_first_reads_and_writes() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        x = m.entry(x)
        for block, norm in zip(m.blocks, m.norms, strict=True):
            x = norm(x + block(x))
        out: Tensor = m.head(x)
        return out

    layers = [nn.Sequential(nn.Conv1d(WIDTH, 4, 1), nn.ReLU(), nn.Conv1d(4, WIDTH, 3, padding=1)) for _ in range(2)]
    module = Written(
        forward,
        entry=nn.Conv1d(3, WIDTH, 3),
        blocks=nn.ModuleList(layers),
        norms=nn.ModuleList(nn.BatchNorm1d(WIDTH) for _ in range(2)),
        head=nn.Conv1d(WIDTH, 2, 3, padding=1, groups=2),
    )
    absorbed(away_from_zero(module), normal(2, 3, 7), census={"aten.add.Tensor": 2}, **FREE)


def test_heads_cut_out_of_the_stream_are_read_by_layers_of_their_own() -> None:
    def end(m: Written, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        out: Tensor = m.narrow(second) + m.narrow(first.transpose(0, 1)).transpose(0, 1)
        return out + m.flat(x.flatten(1)).unsqueeze(1)

    parts = {"narrow": nn.Linear(WIDTH // 2, 2), "flat": nn.Linear(4 * WIDTH, 2)}
    absorbed(post_norm("mul and add", end=end, **parts), X, census={"aten.add.Tensor": 3})


def test_sizes_are_read_of_what_is_kept() -> None:
    module = post_norm("mul and add", end=lambda m, x: m.head(x).reshape(x.shape[0] * 4, 3))
    absorbed(module, X, census={"aten.add.Tensor": 1}, **FREE)


# Norms that stay, and what is read as it was.


ENDS: dict[str, Any] = {
    "live norm": lambda m, x: m.head(m.norm(x)),
    "activation": lambda m, x: m.head(x.tanh()),
    "output": lambda m, x: (m.head(x), x),
}


def test_the_scale_is_one_where_a_live_norm_or_an_activation_follows() -> None:
    cases = [(post_norm("mul and add", end=end, norm=nn.LayerNorm(WIDTH)), X) for end in ENDS.values()]
    module, inputs = together(list(cases))
    run = absorbed(module, *inputs, census={"aten.add.Tensor": len(ENDS)})
    assert len(run.records[0].applied) == len(ENDS)
    assert not any("left" in one.summary for one in run.records[0].applied)


def test_a_norm_that_writes_takes_the_scale_into_its_gain() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        x = m.norms[0](m.entry(x))
        x = m.maps[0](x + m.blocks[0](x))
        x = m.norms[1](x + m.blocks[1](x))
        x = m.maps[1](x + m.blocks[2](x))
        out: Tensor = m.head(m.norms[2](x))
        return out

    torch.manual_seed(0)
    module = Written(
        forward,
        entry=nn.Linear(WIDTH, WIDTH),
        norms=nn.ModuleList([nn.LayerNorm(WIDTH), nn.RMSNorm(WIDTH, elementwise_affine=False), nn.LayerNorm(WIDTH)]),
        maps=nn.ModuleList([frozen(), frozen(seed=1)]),
        blocks=nn.ModuleList(Block() for _ in range(3)),
        head=nn.Linear(WIDTH, 3),
    ).eval()
    run = absorbed(module, X, census={"aten.add.Tensor": 3})
    assert [one.summary.split(";")[0] for one in run.records[0].applied] == ["1 map", "1 map"]


def test_a_map_is_left_before_a_norm_that_reads_another_scale_and_is_counted() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        x = post(m, m.entry(x))
        early = m.norm(x)
        late = m.map(x + m.other(x))
        out: Tensor = m.head(early + m.norm(late) + m.norm(late[:, :1]))
        return out

    module = post_norm("mul and add", "mul and add", map=frozen(seed=5), other=Block(), norm=nn.LayerNorm(WIDTH))
    module.function = forward
    run = absorbed(module, X, census={"aten.mul.Tensor": 1, "aten.add.Tensor": 5})
    assert run.records[0].applied[0].summary.endswith("; 1 map left where the stream is read as it was")


# Ranges of dtypes.


def shrinking(depth: int, dtype: torch.dtype) -> Written:
    """A stack whose maps scale by 2^-4 each, and layers that undo it."""
    module = post_norm(*["scale alone"] * depth)
    for map_, block in zip(module.maps, module.blocks, strict=True):
        map_.scale.data = torch.full((WIDTH,), 2.0**-4)
        block.up.weight.data *= 4.0
    return module.to(dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_fires_in_every_dtype(dtype: torch.dtype) -> None:
    absorbed(post_norm("mul and add", "mul and add").to(dtype), X.to(dtype), census={"aten.add.Tensor": 2})


def test_scales_are_centred_by_powers_of_two_where_they_would_leave_the_range() -> None:
    # From 1 to 2^-8 is out of reach in float16, from 2^4 to 2^-4 is not.
    program = canonical(capture(shrinking(2, torch.float16), (X.half(),)))
    run = run_passes(program, [AbsorbPostNorm()])
    entry = program.tensors["entry.weight"]
    assert torch.equal(run.program.tensors["entry.weight_1"], entry / 2**4)
    torch.testing.assert_close(run.program.run(X.half()), program.run(X.half()), rtol=1e-2, atol=1e-2)


def test_scales_are_centred_in_float16_where_they_are_in_the_range_too() -> None:
    found = {}
    for dtype in (torch.float16, torch.float32):
        program = canonical(capture(shrinking(1, dtype), (X.to(dtype),)))
        run = run_passes(program, [AbsorbPostNorm()])
        assert run.records[0].applied
        entry = program.tensors["entry.weight"]
        found[dtype] = [
            power for power in (0, 2) if any(torch.equal(t, entry / 2**power) for t in run.program.tensors.values())
        ]
    assert found == {torch.float16: [2], torch.float32: [0]}


@pytest.mark.parametrize("inverse", [100.0, 200.0])
def test_a_stream_of_float16_that_grows_large_again_stays_finite(inverse: float) -> None:
    module, x = small_then_large(inverse)
    run = run_passes(canonical(capture(module, (x,))), [AbsorbPostNorm()])
    assert run.records[0].applied
    far = 1.0  # the head takes differences of values near 2^10, where numbers of float16 are 1 or 1/2 apart
    with torch.no_grad():
        torch.testing.assert_close(run.program.run(x), module(x), rtol=1e-2, atol=far)


# Sites.


def test_a_stream_is_one_site_at_its_first_map() -> None:
    program = canonical(capture(post_norm("mul and add", "batch norm over nodes"), (X,)))
    (first,) = AbsorbPostNorm().sites(program)
    assert first.name == "mul"


def test_maps_outside_of_residual_streams_are_no_sites() -> None:
    module = Written(lambda m, x: m.head(m.map(m.entry(x))), entry=nn.Linear(WIDTH, WIDTH), map=frozen(), head=Block())
    assert AbsorbPostNorm().sites(canonical(capture(module.eval(), (X,)))) == []


# Right for any stack.


def outputs_agree(specs: list[AffineSpec]) -> tuple[int, int]:
    """Absorb in all stacks as one program; the number of streams that were, and of maps that were refused."""
    module, inputs = together(
        [(affine_stack(spec, 50 * i), torch.randint(0, TOKENS, (2, 5))) for i, spec in enumerate(specs)]
    )
    program = canonical(capture(module, inputs))
    run = run_passes(program, [AbsorbPostNorm()])
    torch.testing.assert_close(run.program.run(*inputs), program.run(*inputs), rtol=TOLERANCE, atol=TOLERANCE)
    assert not run_passes(run.program, [AbsorbPostNorm()]).records[0].applied, "fires again"
    return len(run.records[0].applied), len(run.records[0].refused)


@settings(deadline=None, derandomize=True, max_examples=1, suppress_health_check=list(HealthCheck))
@given(st.lists(AFFINE_STACKS, min_size=3, max_size=3))
def test_any_stack_gives_what_it_gave(specs: list[AffineSpec]) -> None:
    outputs_agree(specs)


@pytest.mark.slow
def test_many_stacks_give_what_they_gave_and_most_fire() -> None:
    found: list[tuple[int, int]] = []

    @settings(deadline=None, derandomize=True, max_examples=40, suppress_health_check=list(HealthCheck))
    @given(st.lists(AFFINE_STACKS, min_size=6, max_size=6))
    def check(specs: list[AffineSpec]) -> None:
        found.append(outputs_agree(specs))

    check()
    applied, refused = (sum(counts) for counts in zip(*found, strict=True))
    assert applied > refused
