import math
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from flowopt.analysis.channel_statistics import ChannelStatistics
from flowopt.passes.swap.recalibrate_batch_norm import RecalibrateBatchNorm
from flowopt.program.program import Program
from flowopt.testing import assert_refuses, assert_rewrites
from tests.passes.programs import normal
from tests.passes.swap.fits import output, program_of

NORM = "aten._native_batch_norm_legit_no_training"


@cache
def two_calls(dtype: torch.dtype = torch.float32) -> tuple[Program, Tensor]:
    """One norm that is called twice, on values of different statistics."""
    x = normal(5, 4, 6, dtype=dtype)
    return program_of(lambda m, x: m.norm(x) + m.norm(x.tanh()), x, norm=nn.BatchNorm1d(4).to(dtype)), x


def statistics(seed: int) -> ChannelStatistics:
    return ChannelStatistics(
        normal(4, dtype=torch.float64, seed=seed), 0.5 + normal(4, dtype=torch.float64, seed=seed + 1).abs()
    )


def test_each_call_gets_the_statistics_of_what_it_reads() -> None:
    program, x = two_calls(torch.float64)
    found = {"getitem": statistics(1), "getitem_3": statistics(3)}
    run = assert_rewrites(RecalibrateBatchNorm(statistics=found), program, before={NORM: 2}, after={NORM: 2})
    gain, shift = program.tensors["norm.weight"], program.tensors["norm.bias"]
    wanted = sum(
        nn.functional.batch_norm(v, s.mean, s.variance, gain, shift)
        for v, s in zip((x, x.tanh()), found.values(), strict=True)
    )
    # The same kernel, of the same numbers.
    torch.testing.assert_close(output(run.program, x), wanted, rtol=1e-14, atol=1e-14)
    assert {"norm.running_mean_1", "norm.running_var_1"} <= run.program.tensors.keys()


def test_statistics_are_stored_in_the_norms_dtype() -> None:
    program, _ = two_calls()
    found = {"getitem": statistics(1), "getitem_3": statistics(3)}
    run = assert_rewrites(RecalibrateBatchNorm(statistics=found), program, before={NORM: 2}, after={NORM: 2})
    assert {t.dtype for t in run.program.tensors.values()} == {torch.float32}
    assert run.records[0].verdict is not None
    assert run.records[0].verdict.outcome == "approximate"


def test_outputs_beyond_the_budget_are_undone() -> None:
    program, _ = two_calls()
    tiny = ChannelStatistics(torch.zeros(4), torch.full((4,), 1e-4))
    with pytest.raises(AssertionError, match="was reverted"):
        assert_rewrites(RecalibrateBatchNorm(statistics={"getitem": tiny}), program, before={NORM: 2}, after={NORM: 2})


def test_refuses_norms_that_were_not_measured() -> None:
    assert_refuses(RecalibrateBatchNorm(), two_calls()[0], code="not-measured")


def test_refuses_measurements_of_other_sizes() -> None:
    short = ChannelStatistics(torch.zeros(3), torch.ones(3))
    given = {"getitem": short, "getitem_3": short}
    assert_refuses(RecalibrateBatchNorm(statistics=given), two_calls()[0], code="not-measured")


@pytest.mark.parametrize(
    ("mean", "variance"), [(math.nan, 1.0), (1e39, 1.0), (0.0, -0.1), (0.0, math.nan), (0.0, math.inf)]
)
def test_refuses_statistics_that_no_norm_has(mean: float, variance: float) -> None:
    broken = ChannelStatistics(*(torch.full((4,), number, dtype=torch.float64) for number in (mean, variance)))
    given = {"getitem": broken, "getitem_3": broken}
    assert_refuses(RecalibrateBatchNorm(statistics=given), two_calls()[0], code="not-finite")


def test_refuses_a_gain_that_is_computed_at_run_time() -> None:
    program = program_of(
        lambda m, x: nn.functional.batch_norm(x, m.mean, m.var, x.mean((0, 2))),
        normal(5, 4, 6),
        mean=torch.zeros(4),
        var=torch.ones(4),
    )
    assert_refuses(RecalibrateBatchNorm(), program, code="unsupported-spelling")


def test_refuses_a_source_without_a_recorded_shape() -> None:
    program = program_of(lambda m, x: m.norm(x), normal(5, 4, 6), norm=nn.BatchNorm1d(4)).copy()
    del program.node("x").meta["val"]
    assert_refuses(RecalibrateBatchNorm(), program, code="missing-metadata")
