"""Streams without their last feature: exact, and refused where a last feature is not what it has to be."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowopt.passes.fold.compress_rms_norm import CompressRmsNorm
from flowopt.passes.fold.fold_norm_affine import FoldNormAffine
from flowopt.passes.fold.fold_norm_mean import FoldNormMean
from flowopt.pipeline.runner import PipelineRun, run_passes
from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.testing import assert_refuses
from flowopt.verification.verify_passes import VerifyPasses
from tests.passes.fold.residual import WIDTH, Block, Stack, ids, norm
from tests.passes.programs import Written, normal, randomised

X = normal(2, 4, WIDTH)


def compressed(program: Program) -> PipelineRun:
    """After the means and gains went, and the pass."""
    run = run_passes(program, [FoldNormAffine(), FoldNormMean(), CompressRmsNorm()], [VerifyPasses()])
    assert run.records[-1].outcome == "kept", run.records[-1].reason
    return run


def test_every_weight_of_a_stream_loses_a_row_or_a_column() -> None:
    program = capture(randomised(Stack()), (ids(),), dynamic={"ids": {0: "batch"}}, dims={"batch": (1, 8)})
    run = compressed(program)
    (applied,) = run.records[-1].applied
    assert applied.summary == f"3 norms of {WIDTH} features, {WIDTH - 1} of them stored"
    shapes = sorted(tuple(t.shape) for t in run.program.tensors.values() if t.dim() > 1)
    small = WIDTH - 1
    wanted = [(1, 5, small), (3, small), (11, small), *[(2 * WIDTH, small)] * 2, *[(small, 2 * WIDTH)] * 2]
    assert shapes == sorted(wanted)


def test_it_is_exact_in_float64() -> None:
    program = capture(randomised(Stack()).double(), (ids(),))
    run = run_passes(program, [FoldNormAffine(), FoldNormMean(), CompressRmsNorm()])
    torch.testing.assert_close(run.program.run(ids(1)), program.run(ids(1)), rtol=1e-12, atol=1e-12)


def test_vectors_that_are_reshaped_and_computed_at_the_entry() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        stream = torch.cat([m.token.expand(x.shape[0], -1, -1), x.sin()], 1)
        y = m.first(stream).reshape(-1, WIDTH)
        stream = stream + m.block(y).reshape(x.shape[0], -1, WIDTH)
        out: Tensor = m.head(m.last(stream[:, 0]))
        return out

    module = Written(
        forward,
        token=nn.Parameter(torch.zeros(1, 1, WIDTH)),
        block=Block(),
        first=norm(),
        last=norm(),
        head=nn.Linear(WIDTH, 3),
    )
    free: Any = {"x": {0: "batch"}}
    compressed(capture(randomised(module), (X,), dynamic=free, dims={"batch": (1, 8)}))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_sixteen_bits_sums_are_of_float32(dtype: torch.dtype) -> None:
    run = compressed(capture(randomised(Stack()).to(dtype), (ids(),)))
    (first, *_) = run.program.graph.find_nodes(op="call_function", target=torch.ops.aten.rsqrt.default)
    assert first.meta["val"].dtype is torch.float32


def test_refuses_what_writes_with_a_mean() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        out: Tensor = m.head(m.last(m.entry(x)))
        return out

    module = Written(
        forward,
        entry=nn.Linear(WIDTH, WIDTH),
        last=nn.RMSNorm(WIDTH, elementwise_affine=False, eps=0.1),
        head=nn.Linear(WIDTH, 3),
    )
    assert_refuses(CompressRmsNorm(), randomised(module), (X,), code="not-centred")


def test_refuses_a_gain() -> None:
    program = run_passes(capture(randomised(Stack()), (ids(),)), [FoldNormMean()]).program
    assert_refuses(CompressRmsNorm(), program, code="unsupported-spelling")


REFUSED: dict[str, tuple[str, Callable[[Written, Tensor, Tensor], object]]] = {
    "tap": ("stream-tapped", lambda m, c, x: (m.head(m.last(c)), c)),
    "layer norm too": ("mixed-norm", lambda m, c, x: (m.head(m.last(c)), m.other(c))),
    "returned norm": ("graph-output", lambda m, c, x: m.last(c)),
    "other reader": ("not-linear-reader", lambda m, c, x: m.last(c).sin()),
    "part of the features": ("axis-mismatch", lambda m, c, x: m.part(m.last(c)[..., :2])),
    "computed weight": ("not-constant", lambda m, c, x: nn.functional.linear(m.last(c), x[0])),
    "two axes": ("axis-mismatch", lambda m, c, x: m.head(nn.functional.rms_norm(c, (4, WIDTH), eps=0.1))),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name: str) -> None:
    code, read = REFUSED[name]

    def forward(m: Written, x: Tensor) -> object:
        return read(m, x - x.mean(-1, keepdim=True), x)

    module = Written(
        forward,
        last=nn.RMSNorm(WIDTH, elementwise_affine=False, eps=0.1),
        other=norm(affine=False),
        head=nn.Linear(WIDTH, 3),
        part=nn.Linear(2, 3),
    )
    assert_refuses(CompressRmsNorm(), randomised(module), (X,), code=code)


def test_refuses_one_feature() -> None:
    module = Written(
        lambda m, x: m.head(m.last(m.entry(x))),
        entry=nn.Linear(WIDTH, 1),
        last=nn.RMSNorm(1, elementwise_affine=False, eps=0.1),
        head=nn.Linear(1, 3),
    )
    randomised(module)
    with torch.no_grad():
        module.entry.weight.zero_()
        module.entry.bias.zero_()
    assert_refuses(CompressRmsNorm(), module, (X,), code="no-gain")


def test_refuses_a_free_number_of_features() -> None:
    module = Written(lambda m, x: nn.functional.rms_norm(x.cos(), x.shape[-1:], eps=0.1)).eval()
    dims: dict[str, tuple[int, int | None]] = {"features": (2, 16)}
    options: Any = {"dynamic": {"x": {2: "features"}}, "dims": dims}
    assert_refuses(CompressRmsNorm(), module, (X,), code="dynamic-shape", **options)
