"""Where ``fold-norm-mean`` refuses, and why."""

import pytest
import torch
from torch import Tensor, nn

from flowopt.passes.fold.fold_norm_mean import FoldNormMean
from flowopt.pipeline.runner import run_passes
from flowopt.program.capture import capture
from flowopt.testing import assert_refuses
from tests.passes.fold.residual import EPS, WIDTH, Block, Stack, ids, norm
from tests.passes.programs import Written, normal, randomised

X = normal(2, 4, WIDTH)


def test_refuses_post_norm_blocks() -> None:
    class Post(Stack):
        def forward(self, ids: Tensor) -> Tensor:
            x = self.embedded(ids).tanh()
            for i in range(self.depth):
                x = self.norms[i](x + self.blocks[i](x))
            out: Tensor = self.norms[self.depth](x + self.blocks[self.depth](x))
            return out

    run = run_passes(capture(randomised(Post()), (ids(),)), [FoldNormMean()])
    assert not run.records[0].applied
    # The first norm reads what comes from the embeddings, which the first block reads as it is.
    assert run.records[0].refusal_counts == {"post-norm": 2, "stream-tapped": 1}


def test_refuses_norms_that_write_into_the_stream_several_times() -> None:
    def peri(m: Stack, x: Tensor, i: int) -> Tensor:
        return x + m.norms[i + m.depth](m.blocks[i](m.norms[i](x)).tanh())

    run = run_passes(capture(randomised(Stack(peri)), (ids(),)), [FoldNormMean()])
    assert not run.records[0].applied
    # The norms that write read what a tanh gives, each its own.
    assert run.records[0].refusal_counts == {"peri-norm": 3, "not-linear-writer": 2}


def test_refuses_a_stream_that_an_rms_norm_reads_too() -> None:
    class Mixed(Stack):
        def forward(self, ids: Tensor) -> Tensor:
            x = self.embedded(ids)
            x = x + self.blocks[0](self.norms[0](x))
            x = x + self.blocks[1](nn.functional.rms_norm(x, (WIDTH,), eps=EPS))
            out: Tensor = self.head(self.last(x))
            return out

    assert_refuses(FoldNormMean(), randomised(Mixed()), (ids(),), code="mixed-norm")


TAPS = {
    "output": lambda m, x: (m.head(m.last(x)), x),
    "layer": lambda m, x: m.head(m.last(x)) + m.other(x),
    "product": lambda m, x: m.head(m.last(x)) * x.mean(-1, keepdim=True),
    "selected feature": lambda m, x: m.head(m.last(x)) * x[..., :1],
    "scaled by feature": lambda m, x: m.head(m.last(x)) + m.head(x * m.scale),
    "norm over two axes": lambda m, x: m.head(m.last(x)) + m.head(nn.functional.layer_norm(x, x.shape[1:])),
    "two streams of one value": lambda m, x: m.head(m.last(x)) + (x @ x.transpose(1, 2)).sum(-1, keepdim=True),
}


@pytest.mark.parametrize("name", TAPS)
def test_refuses_a_stream_that_something_else_reads(name: str) -> None:
    def forward(m: Written, x: Tensor) -> object:
        stream = m.entry(x)
        return TAPS[name](m, stream + m.block(m.first(stream)))

    module = Written(
        forward,
        entry=nn.Linear(WIDTH, WIDTH),
        block=Block(),
        first=norm(),
        last=norm(),
        head=nn.Linear(WIDTH, 3),
        other=nn.Linear(WIDTH, 3),
        scale=nn.Parameter(torch.ones(WIDTH)),
    )
    expected = {"norm over two axes": ("stream-tapped", "axis-mismatch")}.get(name, ("stream-tapped",))
    run = run_passes(capture(randomised(module), (X,)), [FoldNormMean()])
    assert not run.records[0].applied
    assert set(run.records[0].refusal_counts) == set(expected)


def test_refuses_a_writer_that_is_no_layer_for_one_norm() -> None:
    module = Written(lambda m, x: m.head(m.last(x.sin())), last=norm(), head=nn.Linear(WIDTH, 3))
    assert_refuses(FoldNormMean(), randomised(module), (X,), code="not-linear-writer")


WRITERS = {
    "gated by feature": lambda m, y: m.block(y) * y,
    "scaled by feature": lambda m, y: m.block(y) * m.scale,
    "computed weight": lambda m, y: y @ y.mean((0, 1)).outer(m.scale),
    "convolution in groups": lambda m, y: m.grouped(y.transpose(1, 2)).transpose(1, 2),
    "features from two": lambda m, y: torch.cat([m.narrow(y), m.narrow(y.cos())], -1),
    "shifted by token": lambda m, y: m.block(y) + y[..., :1],
}


@pytest.mark.parametrize("name", WRITERS)
def test_refuses_two_writers_that_are_no_layers(name: str) -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        stream = x + WRITERS[name](m, m.first(x))
        out: Tensor = m.head(m.last(stream))
        return out

    module = Written(
        forward,
        block=Block(),
        narrow=nn.Linear(WIDTH, WIDTH // 2),
        grouped=nn.Conv1d(WIDTH, WIDTH, 1, groups=2),
        first=norm(),
        last=norm(),
        head=nn.Linear(WIDTH, 3),
        scale=nn.Parameter(torch.ones(WIDTH)),
    )
    assert_refuses(FoldNormMean(), randomised(module), (X,), code="not-linear-writer")


def test_refuses_a_quantized_writer() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        stream = nn.functional.linear(x, m.stored.float() * 0.05)
        out: Tensor = m.head(m.last(stream + m.block(m.first(stream))))
        return out

    stored = torch.randint(-9, 9, (WIDTH, WIDTH), generator=torch.Generator().manual_seed(0), dtype=torch.int8)
    module = Written(forward, stored=stored, block=Block(), first=norm(), last=norm(), head=nn.Linear(WIDTH, 3))
    assert_refuses(FoldNormMean(), randomised(module), (X,), code="quantized-weight")


def test_refuses_a_norm_over_more_than_the_last_axis() -> None:
    module = Written(lambda m, x: m.last(m.entry(x)), last=nn.LayerNorm((4, WIDTH)), entry=nn.Linear(WIDTH, WIDTH))
    assert_refuses(FoldNormMean(), randomised(module), (X,), code="axis-mismatch")


def test_refuses_features_along_two_axes() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        square = m.entry(x)
        out: Tensor = m.last(square + square.transpose(1, 2))
        return out

    module = Written(forward, last=norm(), entry=nn.Linear(WIDTH, WIDTH))
    assert_refuses(FoldNormMean(), randomised(module), (normal(2, WIDTH, WIDTH),), code="dynamic-shape")
