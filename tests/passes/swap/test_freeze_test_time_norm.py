from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowopt.analysis.channel_statistics import ChannelStatistics
from flowopt.ops import AlphaBatchNorm
from flowopt.passes.fold.fold_batch_norm import FoldBatchNorm
from flowopt.passes.fold.fold_constants import FoldConstants
from flowopt.passes.swap.freeze_test_time_norm import FreezeTestTimeNorm
from flowopt.pipeline.runner import run_passes
from flowopt.program.program import Program
from flowopt.recovery.recalibrate import statistics_at_test_time
from flowopt.testing import assert_refuses, assert_rewrites
from tests.passes.programs import normal, randomised, undecomposed
from tests.passes.swap.fits import output, program_of

NORM = "aten._native_batch_norm_legit_no_training"
WHOLE = "aten._native_batch_norm_legit.no_stats"


class AlphaNorm(nn.Module):
    """An alpha-BN as it is written out, for channels on any axis."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, axis: int = 1, *, weight: float = 0.3) -> None:
        super().__init__()
        self.axis, self.target_weight = axis, weight
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        shape = [-1 if a == self.axis else 1 for a in range(x.dim())]
        others = [a for a in range(x.dim()) if a != self.axis]
        count = x.numel() // x.shape[self.axis]
        mean = x.sum(others) / count
        variance = (x - mean.reshape(shape)).square().sum(others) / (count - 1)
        source, target = 1 - self.target_weight, self.target_weight
        mean = source * self.running_mean + target * mean
        variance = source * self.running_var + target * variance
        z = (x - mean.reshape(shape)) / (variance + 1e-5).sqrt().reshape(shape)
        return self.weight.reshape(shape) * z + self.bias.reshape(shape)


NORMS: dict[str, Callable[[], nn.Module]] = {
    "without statistics": lambda: nn.BatchNorm1d(4, track_running_stats=False),
    "bare": lambda: nn.BatchNorm1d(4, affine=False, track_running_stats=False),
    "alpha": lambda: AlphaNorm(4),
}


@cache
def behind_a_convolution(kind: str) -> tuple[Program, Tensor]:
    x = normal(6, 2, 7, dtype=torch.float64)
    conv, norm = nn.Conv1d(2, 4, 2).double(), NORMS[kind]().double()
    return program_of(lambda m, x: m.norm(m.conv(x)), x, conv=conv, norm=norm, free={0: "batch"}), x


@pytest.mark.parametrize("kind", ["without statistics", "alpha"])
def test_a_frozen_norm_gives_each_sample_the_same_whatever_its_batch(kind: str) -> None:
    program, x = behind_a_convolution(kind)
    frozen = FreezeTestTimeNorm(statistics=statistics_at_test_time(program, [{"x": x}]))
    run = assert_rewrites(
        frozen, program, before={NORM: 0}, after={NORM: 1, WHOLE: 0, "aten.sqrt": 0, "aten.mul.Tensor": 0}
    )
    whole, part = output(run.program, x), output(run.program, x[2:3])
    # One convolution of other sizes in float64.
    torch.testing.assert_close(part, whole[2:3], rtol=1e-12, atol=1e-12)
    assert float((output(program, x[2:3]) - output(program, x)[2:3]).abs().max()) > 1e-2
    folded = run_passes(run.program, [FoldBatchNorm()]).program
    assert [str(n.target) for n in folded.graph.nodes if n.op == "call_function"] == ["aten.conv1d.default"]
    # A convolution with its scale before or behind.
    torch.testing.assert_close(output(folded, x), whole, rtol=1e-12, atol=1e-12)


def test_on_its_calibration_batch_a_frozen_alpha_norm_gives_what_it_gave() -> None:
    program, x = behind_a_convolution("alpha")
    pass_ = FreezeTestTimeNorm(statistics=statistics_at_test_time(program, [{"x": x}]))
    # Means and squares of 36 values in float64, added in another order.
    torch.testing.assert_close(
        output(run_passes(program, [pass_]).program, x), output(program, x), rtol=1e-11, atol=1e-11
    )


def test_on_its_calibration_batch_a_frozen_norm_without_statistics_gives_what_it_gave() -> None:
    program, x = behind_a_convolution("bare")
    pass_ = FreezeTestTimeNorm(statistics=statistics_at_test_time(program, [{"x": x}]))
    # Means and squares of 36 values in float64, added in another order; by the unbiased variance it were 1.4 percent.
    torch.testing.assert_close(
        output(run_passes(program, [pass_]).program, x), output(program, x), rtol=1e-11, atol=1e-11
    )


def test_a_gain_and_a_shift_are_optional() -> None:
    program, x = behind_a_convolution("bare")
    pass_ = FreezeTestTimeNorm(statistics=statistics_at_test_time(program, [{"x": x}]))
    assert_rewrites(pass_, program, before={WHOLE: 1}, after={WHOLE: 0, NORM: 1})


def test_a_norm_that_counts_in_32_bits_may_be_stored_in_16() -> None:
    norm = AlphaBatchNorm(3, target_weight=0.3, channel_axis=1).half()
    x = normal(8, 3, 5, dtype=torch.float16)
    program = program_of(lambda m, x: m.norm(x) + 1.0, x, norm=norm)
    pass_ = FreezeTestTimeNorm(statistics=statistics_at_test_time(program, [{"x": x}]))
    run = assert_rewrites(pass_, program, before={NORM: 0}, after={NORM: 1, "aten.sqrt": 0})
    assert output(run.program, x).dtype is torch.float16
    # Values below 8 in float16.
    torch.testing.assert_close(output(run.program, x), output(program, x), rtol=2e-3, atol=4e-3)


def test_a_norm_of_32_bits_on_a_value_of_16_gives_32() -> None:
    x = normal(8, 4, 5, dtype=torch.float16)
    program = program_of(lambda m, x: m.norm(x), x, norm=AlphaNorm(4))
    pass_ = FreezeTestTimeNorm(statistics=statistics_at_test_time(program, [{"x": x}]))
    run = assert_rewrites(pass_, program, before={NORM: 0}, after={NORM: 1, "aten.sqrt": 0})
    assert output(run.program, x).dtype is output(program, x).dtype is torch.float32
    # The mean and the variance were summed in float16.
    torch.testing.assert_close(output(run.program, x), output(program, x), rtol=2e-3, atol=4e-3)


def test_bare_exports_spell_it_as_batch_norm() -> None:
    norm = randomised(nn.BatchNorm1d(4, track_running_stats=False))
    program = undecomposed(norm, normal(5, 4, 6))
    assert [str(n.target) for n in program.graph.nodes if n.op == "call_function"] == ["aten.batch_norm.default"]
    found = ChannelStatistics(torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64))
    pass_ = FreezeTestTimeNorm(statistics={"batch_norm": found})
    assert_rewrites(pass_, program, before={"aten.batch_norm": 1}, after={"aten.batch_norm": 0, NORM: 1})


def test_refuses_norms_that_were_not_measured() -> None:
    assert_refuses(FreezeTestTimeNorm(), behind_a_convolution("alpha")[0], code="not-measured")


def test_refuses_variances_that_no_norm_has() -> None:
    program, _ = behind_a_convolution("without statistics")
    negative = ChannelStatistics(torch.zeros(4), torch.tensor([1.0, -1.0, 1.0, 1.0]))
    assert_refuses(FreezeTestTimeNorm(statistics={"getitem": negative}), program, code="not-finite")


def test_refuses_channels_on_another_axis() -> None:
    program = program_of(lambda m, x: m.norm(x), normal(3, 5, 4), norm=AlphaNorm(4, axis=2))
    assert_refuses(FreezeTestTimeNorm(), program, code="axis-mismatch")


def same(vector: Tensor) -> Tensor:
    return vector


def mixed(
    x: Tensor,
    over: Tensor,
    axes: tuple[int, ...],
    factor: Any = 0.3,
    other: Any = None,
    *,
    mean: Callable[[Tensor], Tensor] = same,
    variance: Callable[[Tensor], Tensor] = same,
    alpha: int = 1,
) -> Tensor:
    """A mixture by statistics of ``over``, or over fewer axes, or by what is made of them."""
    own_mean = mean(over.sum(axes) / 18)
    own_variance = variance((over - over.mean((0, 2), keepdim=True)).square().sum((0, 2)) / 17)
    stored = torch.ones(4)
    mixed_mean, mixed_variance = (
        0.7 * stored + share * own
        for share, own in ((factor, own_mean), (factor if other is None else other, own_variance))
    )
    return x.sub(mixed_mean.reshape(1, -1, 1), alpha=alpha) / (mixed_variance + 1e-5).sqrt().reshape(1, -1, 1)


def test_refuses_roots_of_other_things() -> None:
    def forward(m: Any, x: Tensor) -> list[Tensor]:
        return [
            x.abs().sqrt(),
            mixed(x, x.abs(), (0, 2)),
            mixed(x, x, (0, 2), factor=x.mean()),
            mixed(x, x, (0, 2), factor=0.3, other=0.4),
            mixed(x, x, (0, 2), alpha=2),
            (x - 0.5) / (x.square().sum((0, 2)) + 1e-5).sqrt().reshape(1, -1, 1),
        ]

    run = assert_refuses(FreezeTestTimeNorm(), program_of(forward, normal(3, 4, 6)), code="not-a-norm")
    assert len(run.records[0].refused) == 6


@pytest.mark.parametrize("forged", ["mean", "variance"])
def test_refuses_what_is_made_of_the_batch_s_statistics(forged: str) -> None:
    changes: list[Callable[[Tensor], Tensor]] = [
        lambda v: 0.5 * v,
        lambda v: v.roll(1),
        lambda v: v.abs().sqrt(),
        lambda v: v.clamp(max=0.1),
        lambda v: 0.9 * v + 0.2,
        lambda v: v * 17 / 18,
        lambda v: v.where(v > 0, 0.0),
        lambda v: v,
    ]

    def forward(m: Any, x: Tensor) -> list[Tensor]:
        options: list[dict[str, Any]] = [{forged: change} for change in changes]
        return [mixed(x, x, (0, 2), **option) for option in options]

    run = run_passes(program_of(forward, normal(3, 4, 6)), [FreezeTestTimeNorm()])
    codes = [refusal.code for refusal in run.records[0].refused]
    # A square root among them has no norm around it. The last one is the norm itself, which nobody measured.
    assert codes.count("not-measured") == 1
    assert set(codes) == {"not-a-norm", "not-measured"}
    assert len(codes) == len(changes) + 1


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("free", [{}, {0: "batch", 2: "places"}])
def test_finds_the_norm_as_the_module_is_captured(axis: int, free: dict[int, str]) -> None:
    norm = AlphaBatchNorm(4, target_weight=0.3, channel_axis=axis)
    shape = (3, 4, 4)
    if axis == -1:
        free = {at - (at == 2): name for at, name in free.items()}
    program = program_of(lambda m, x: m.norm(x), normal(*shape), free=free, norm=norm)
    for found in (program, run_passes(program, [FoldConstants()]).program):
        code = "not-measured" if axis == 1 else "axis-mismatch"
        assert_refuses(FreezeTestTimeNorm(), found, code=code)


def test_refuses_a_batch_norm_with_statistics() -> None:
    program = undecomposed(randomised(nn.BatchNorm1d(4)), normal(5, 4, 6))
    assert_refuses(FreezeTestTimeNorm(), program, code="not-a-norm")


def test_refuses_where_saved_statistics_are_read() -> None:
    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        value, mean, _ = torch.ops.aten._native_batch_norm_legit.no_stats(x, None, None, True, 0.1, 1e-5)
        return value, mean

    assert_refuses(FreezeTestTimeNorm(), program_of(forward, normal(5, 4, 6)), code="multiple-readers")


def test_refuses_a_source_without_a_recorded_shape() -> None:
    program = program_of(lambda m, x: m.norm(x), normal(5, 4, 6), norm=NORMS["without statistics"]()).copy()
    del program.node("x").meta["val"]
    assert_refuses(FreezeTestTimeNorm(), program, code="missing-metadata")
