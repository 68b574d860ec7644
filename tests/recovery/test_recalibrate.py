from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowopt.analysis.channel_statistics import ChannelStatistics
from flowopt.errors import UserError
from flowopt.ops import AlphaBatchNorm
from flowopt.passes.fold.fold_batch_norm import FoldBatchNorm
from flowopt.passes.swap.recalibrate_batch_norm import RecalibrateBatchNorm
from flowopt.pipeline.runner import run_passes
from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.recovery.recalibrate import alpha, reestimate, statistics_at_test_time
from flowopt.recovery.with_statistics import run_with_statistics
from tests.passes.programs import Written, canonical, normal, randomised
from tests.recovery.shifted import accuracy, classifier, images, shifted


def logits(program: Program, x: Tensor) -> Tensor:
    found = program.run(x)
    assert isinstance(found, Tensor)
    return found


def close(found: dict[str, ChannelStatistics], wanted: dict[str, tuple[Tensor, Tensor]]) -> None:
    assert list(found) == list(wanted)
    for name, statistics in wanted.items():
        # Sums of some thousand squares in float64, in another order.
        torch.testing.assert_close(tuple(found[name]), statistics, rtol=1e-10, atol=1e-12)


def by_hand(program: Program, batches: list[Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Layer by layer, every norm by its batch's statistics as torch does in training mode."""
    t = program.tensors
    read: list[list[Tensor]] = [[], []]
    for x in batches:
        for at in range(2):
            x = nn.functional.conv2d(x, t[f"convs.{at}.weight"], t[f"convs.{at}.bias"])
            read[at].append(x)
            mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
            gain, shift = (t[f"norms.{at}.{name}"].reshape(1, -1, 1, 1) for name in ("weight", "bias"))
            x = (gain * (x - mean) / (variance + 1e-5).sqrt() + shift).relu()
    whole = [torch.cat(values) for values in read]
    return {n: (v.mean((0, 2, 3)), v.var((0, 2, 3))) for n, v in zip(names(program), whole, strict=True)}


def names(program: Program) -> list[str]:
    return [n.name for n in program.graph.nodes if n.name.startswith("getitem")]


def test_every_norm_is_measured_behind_norms_that_go_by_their_batch() -> None:
    program = classifier()
    x = shifted(images(40, 5)[0])
    parts = [x[:16], x[16:]]
    close(reestimate(program, [{"x": part} for part in parts]), by_hand(program, parts))


def test_one_batch_is_re_estimated_as_torch_does_in_training_mode() -> None:
    norms = [nn.BatchNorm1d(3, momentum=None), nn.BatchNorm1d(3, momentum=None)]
    module = randomised(Written(lambda m, x: m.b(m.a(x)), a=norms[0], b=norms[1])).double()
    x = normal(5, 3, dtype=torch.float64)
    found = reestimate(canonical(capture(module, (x,))), [{"x": x}])
    for norm in norms:
        norm.reset_running_stats()
    module.train()(x)
    wanted = [(n.running_mean, n.running_var) for n in norms]
    close(found, dict(zip(found, wanted, strict=True)))  # type: ignore[arg-type]  # they track statistics


def test_re_estimation_recovers_what_a_shift_of_the_data_cost() -> None:
    program = classifier()
    x, labels = images(200, 9)
    target = shifted(x)
    run = run_passes(
        program, [RecalibrateBatchNorm(statistics=reestimate(program, [{"x": shifted(images(200, 5)[0])}]))]
    )
    before, lost, after = (
        accuracy(logits(p, v), labels) for p, v in ((program, x), (program, target), (run.program, target))
    )
    assert before > 0.9
    assert lost < before - 0.3
    assert after > before - 0.05


def test_a_recalibrated_norm_folds_away() -> None:
    program = classifier()
    x = shifted(images(64, 5)[0])
    statistics = reestimate(program, [{"x": x}])
    recalibrated = run_passes(program, [RecalibrateBatchNorm(statistics=statistics)]).program
    folded = run_passes(recalibrated, [FoldBatchNorm()]).program
    assert not [n for n in folded.graph.nodes if "batch_norm" in n.name]
    # Convolutions of 54 products in float64, with scales before or behind them.
    torch.testing.assert_close(logits(folded, x), logits(recalibrated, x), rtol=1e-10, atol=1e-10)


def test_a_mixture_lies_between_the_stored_statistics_and_the_targets() -> None:
    program = classifier()
    target = reestimate(program, [{"x": shifted(images(20, 5)[0])}])
    mixed = alpha(program, target, 0.25)
    stored = [tuple(program.tensors[f"norms.{i}.running_{w}"] for w in ("mean", "var")) for i in range(2)]
    wanted = {
        name: tuple(0.75 * s + 0.25 * t for s, t in zip(own, target[name], strict=True))
        for name, own in zip(target, stored, strict=True)
    }
    close(mixed, wanted)  # type: ignore[arg-type]  # pairs
    close(alpha(program, target, 0.0), dict(zip(target, stored, strict=True)))  # type: ignore[arg-type]  # pairs
    close(alpha(program, target, 1.0), {name: (s.mean, s.variance) for name, s in target.items()})


def test_with_the_stored_statistics_the_program_is_what_it_was() -> None:
    program = classifier()
    x = images(8, 3)[0]
    statistics = alpha(program, reestimate(program, [{"x": x}]), 0.0)
    found = run_with_statistics(program, {"x": x}, lambda parts, _: statistics[parts.output.name])
    # The same scales and shifts in float64, applied in another order.
    torch.testing.assert_close(found["output"], logits(program, x), rtol=1e-11, atol=1e-11)


def test_a_batch_norm_without_statistics_is_measured_as_it_runs() -> None:
    module = randomised(
        Written(
            lambda m, x: m.norm(m.conv(x)), conv=nn.Conv1d(2, 3, 2), norm=nn.BatchNorm1d(3, track_running_stats=False)
        )
    ).double()
    parts = [normal(4, 2, 6, dtype=torch.float64, seed=seed) for seed in (1, 2)]
    program = canonical(capture(module, (parts[0],)))
    read = module.conv(torch.cat(parts)).detach()
    found = statistics_at_test_time(program, [{"x": part} for part in parts])
    close(found, {"getitem": (read.mean((0, 2)), read.var((0, 2), correction=0))})


def test_an_alpha_norm_is_measured_with_the_variance_that_it_mixes() -> None:
    x = normal(6, 3, 5, dtype=torch.float64)
    program = written(lambda m, x: m.norm(x), x, norm=AlphaBatchNorm(3, channel_axis=1).double())
    (found,) = statistics_at_test_time(program, [{"x": x}]).values()
    close({"norm": found}, {"norm": (x.mean((0, 2)), x.var((0, 2)))})


def test_norms_of_one_value_are_measured_alike() -> None:
    x = normal(6, 3, dtype=torch.float64)
    program = written(lambda m, x: m.a(x) + m.b(x), x, a=nn.BatchNorm1d(3).double(), b=nn.BatchNorm1d(3).double())
    close(reestimate(program, [{"x": x}]), dict.fromkeys(names(program), (x.mean(0), x.var(0))))


@pytest.mark.parametrize("weight", [-0.1, 1.5])
def test_says_that_a_weight_is_no_share(weight: float) -> None:
    with pytest.raises(UserError, match="is a share between 0 and 1"):
        alpha(classifier(), {}, weight)
    with pytest.raises(UserError, match="is a share between 0 and 1"):
        reestimate(classifier(), [], target_weight=weight)


def test_says_which_norms_have_no_statistics() -> None:
    with pytest.raises(UserError, match="there are no statistics of getitem"):
        alpha(classifier(), {}, 0.5)


def test_says_which_norm_and_batch_have_a_nan() -> None:
    x = images(4, 3)[0]
    broken = x.clone()
    broken[2] = torch.nan
    with pytest.raises(UserError, match="batch 1 gives the norm getitem a NaN or an infinity"):
        reestimate(classifier(), [{"x": x}, {"x": broken}])


def test_says_that_there_is_no_data() -> None:
    with pytest.raises(UserError, match="no batch of target data"):
        reestimate(classifier(), [])


def written(function: Any, *inputs: Tensor, **parts: nn.Module) -> Program:
    return canonical(capture(randomised(Written(function, **parts)), inputs))


def test_says_that_one_value_has_no_variance() -> None:
    program = written(lambda m, x: m.norm(x), normal(1, 3), norm=nn.BatchNorm1d(3))
    with pytest.raises(UserError, match="reads a single value for each channel"):
        reestimate(program, [{"x": normal(1, 3)}])


def test_says_that_there_is_no_batch_norm() -> None:
    program = written(lambda m, x: m.layer(x), normal(2, 3), layer=nn.Linear(3, 3))
    with pytest.raises(UserError, match="no batch norm with running statistics"):
        reestimate(program, [])
    with pytest.raises(UserError, match="no batch norm that goes by its batch"):
        statistics_at_test_time(program, [])
