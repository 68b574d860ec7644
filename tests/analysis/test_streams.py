"""Residual streams by dataflow: members, writers, readers, and where norms stand."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from flowopt.analysis.streams import Placement, Stream, streams
from flowopt.program.capture import capture
from tests.passes.fold.residual import WIDTH, Block, Stack, ids, norm, pre
from tests.passes.programs import Written, normal, randomised

Step = Callable[[Stack, Tensor, int], Tensor]


def of_stack(step: Step, depth: int = 2) -> Stream:
    (found,) = streams(capture(randomised(Stack(step, depth=depth)), (ids(),)).graph)
    return found


def post(m: Stack, x: Tensor, i: int) -> Tensor:
    out: Tensor = m.norms[i](x + m.blocks[i](x))
    return out


def peri(m: Stack, x: Tensor, i: int) -> Tensor:
    return x + m.norms[i + m.depth](m.blocks[i](m.norms[i](x)))


def inside(m: Stack, x: Tensor, i: int) -> Tensor:
    return x + m.norms[i](m.blocks[i](x))


def parallel(m: Stack, x: Tensor, i: int) -> Tensor:
    y = m.norms[i](x)
    return x + m.blocks[i](y) + m.blocks[i + m.depth](y)


def mixed(m: Stack, x: Tensor, i: int) -> Tensor:
    return x + m.blocks[i](m.norms[i](x) if i else x)


def test_a_pre_norm_stack_is_one_stream_with_all_its_parts() -> None:
    stream = of_stack(pre)
    assert (stream.size, stream.placement, stream.is_parallel) == (WIDTH, Placement.PRE, False)
    assert (len(stream.additions), len(stream.norms), len(stream.taps)) == (3, 3, 0)
    kinds = [str(node.target) for node in stream.writers]
    assert sorted(kinds) == ["aten.embedding.default", *["aten.linear.default"] * 2, "places"]


@pytest.mark.parametrize(
    ("step", "placement", "is_parallel"),
    [
        (pre, Placement.PRE, False),
        (parallel, Placement.PRE, True),
        (peri, Placement.PERI, False),
        (mixed, Placement.MIXED, False),
    ],
)
def test_where_norms_stand(step: Step, placement: Placement, is_parallel: bool) -> None:
    stream = of_stack(step)
    assert (stream.placement, stream.is_parallel) == (placement, is_parallel)


def test_post_norm_blocks_have_a_stream_each() -> None:
    module = randomised(Stack(post, depth=3))
    found = streams(capture(module, (ids(),)).graph)
    # Embeddings and the first block are one: nothing normalises between them.
    assert [stream.placement for stream in found] == [Placement.MIXED, Placement.POST, Placement.POST]
    assert [len(stream.norm_writers) for stream in found] == [0, 1, 1]


def test_a_norm_inside_of_the_branch_writes_and_the_stream_is_read_as_it_is() -> None:
    found = streams(capture(randomised(Stack(inside)), (ids(),)).graph)
    assert [stream.placement for stream in found if len(stream.additions) > 1] == [Placement.POST]


def test_a_norm_at_the_entry_is_no_part_of_the_blocks() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        stream = m.entry(x.sin())
        out: Tensor = m.last(stream + m.block(m.first(stream)))
        return out

    module = randomised(Written(forward, entry=norm(), block=Block(), first=norm(), last=norm()))
    (stream,) = streams(capture(module, (normal(2, 4, WIDTH),)).graph)
    assert stream.placement is Placement.PRE
    assert len(stream.norm_writers) == 1


def test_taps_are_all_that_is_no_norm() -> None:
    def forward(m: Written, x: Tensor) -> list[Tensor]:
        stream = m.entry(x)
        stream = stream + m.block(m.first(stream))
        return [m.last(stream), stream[:, 0], stream.sin(), stream.amax(1)]

    module = Written(forward, entry=nn.Linear(WIDTH, WIDTH), block=Block(), first=norm(), last=norm())
    (stream,) = streams(capture(randomised(module), (normal(2, 4, WIDTH),)).graph)
    assert sorted(tap.node.name for tap in stream.taps) == ["amax", "output", "sin"]


@pytest.mark.parametrize("keepdim", [False, True])
def test_means_over_tokens_belong_to_the_stream_and_means_over_features_do_not(keepdim: bool) -> None:
    def forward(m: Written, x: Tensor) -> list[Tensor]:
        stream = m.entry(x)
        stream = stream + m.block(m.first(stream))
        pooled = stream.mean(1, keepdim=keepdim) + stream.sum((0, 1), keepdim=keepdim)
        return [m.last(pooled), stream.mean((1, 2), keepdim=keepdim)]

    module = Written(forward, entry=nn.Linear(WIDTH, WIDTH), block=Block(), first=norm(), last=norm())
    (stream,) = streams(capture(randomised(module), (normal(2, 4, WIDTH),)).graph)
    assert [tap.node.name for tap in stream.taps] == ["mean_1"]
    assert len(stream.norms) == 2


def test_a_free_size_is_read_without_a_tap() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        stream = m.entry(x)
        y = m.first(stream).reshape(stream.shape[0] * stream.shape[1], WIDTH)
        out: Tensor = m.last(stream + m.block(y).reshape(stream.shape))
        return out

    module = Written(forward, entry=nn.Linear(WIDTH, WIDTH), block=Block(), first=norm(), last=norm())
    free = {"x": {0: "batch", 1: "length"}}
    dims: dict[str, tuple[int, int | None]] = {"batch": (2, 8), "length": (2, 9)}
    (stream,) = streams(capture(randomised(module), (normal(3, 4, WIDTH),), dynamic=free, dims=dims).graph)
    assert not stream.taps
    assert len(stream.norms) == 2


def test_features_that_are_cut_or_mixed_leave_the_stream() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        stream = m.entry(x)
        heads = stream.reshape(2, 4, 2, WIDTH // 2)
        out: Tensor = (
            m.last(stream + m.block(m.first(stream))) + heads.flatten(2) + torch.cat([stream, stream], -1)[..., :WIDTH]
        )
        return out

    module = Written(forward, entry=nn.Linear(WIDTH, WIDTH), block=Block(), first=norm(), last=norm())
    (stream,) = streams(capture(randomised(module), (normal(2, 4, WIDTH),)).graph)
    assert sorted({str(tap.node.target) for tap in stream.taps}) == ["aten.cat.default", "aten.reshape.default"]


def test_a_model_without_norms_of_sums_has_no_stream() -> None:
    module = Written(lambda m, x: m.last(m.entry(x)) + x, entry=nn.Linear(WIDTH, WIDTH), last=norm())
    assert streams(capture(randomised(module), (normal(2, 4, WIDTH),)).graph) == []
