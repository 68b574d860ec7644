import dataclasses
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowopt.errors import UserError
from flowopt.passes.swap.swap_norm import SwapNorm, error_of_rms
from flowopt.pipeline.runner import run_passes
from flowopt.program.program import Program
from flowopt.testing import assert_refuses, assert_rewrites
from tests.passes.programs import normal
from tests.passes.swap.fits import WIDTH, measured, output, program_of, tokens

X = tokens(4, 9)


NORMS: dict[str, Callable[[], nn.Module]] = {
    "rms": lambda: nn.RMSNorm(WIDTH, eps=1e-5),
    "layer": lambda: nn.LayerNorm(WIDTH),
    "layer over two axes": lambda: nn.LayerNorm((9, WIDTH)),
}


@cache
def alone(kind: str, dtype: torch.dtype = torch.float32) -> Program:
    """A norm alone, captured once."""
    return program_of(lambda m, x: m.norm(x), X.to(dtype), norm=NORMS[kind]().to(dtype))


def swapped(program: Program, *batches: Tensor, **options: Any) -> Program:
    given = {"fits": measured(program, *batches)} | options
    run = run_passes(program, [SwapNorm(**given)])
    assert run.records[0].applied, run.records[0].refused
    return run.program


# What takes a norm's place.


def test_an_rms_norm_becomes_one_product() -> None:
    program = alone("rms")
    run = assert_rewrites(
        SwapNorm(fits=measured(program, X)),
        program,
        before={"aten.rms_norm": 1},
        after={"aten.rms_norm": 0, "aten.mul.Tensor": 1, "aten.add.Tensor": 0},
    )
    assert run.records[0].verdict is not None
    assert run.records[0].verdict.outcome == "approximate"


@pytest.mark.parametrize("to", ["power", "frozen", "batch"])
def test_at_inference_all_fixed_maps_are_one(to: str) -> None:
    program = alone("rms")
    unified, other = (output(swapped(program, X, to=name), X) for name in ("unified", to))
    assert torch.equal(unified, other)


def test_a_layer_norm_becomes_a_product_and_a_sum() -> None:
    program = alone("layer")
    after = {"aten.layer_norm": 0, "aten.mul.Tensor": 1, "aten.add.Tensor": 1}
    pass_ = SwapNorm(fits=measured(program, X), threshold=0.4)
    assert_rewrites(pass_, program, before={"aten.layer_norm": 1}, after=after)


def test_at_vectors_of_one_length_the_swap_changes_nothing() -> None:
    x = tokens(4, 9, dtype=torch.float64)
    x = 2.0 * x / x.square().mean(-1, keepdim=True).sqrt()
    program = alone("rms", torch.float64)
    # Root, quotient and product in float64.
    torch.testing.assert_close(output(swapped(program, x), x), output(program, x), rtol=1e-12, atol=1e-12)


def test_the_error_on_calibration_data_is_the_score() -> None:
    norm = nn.RMSNorm(WIDTH, eps=1e-12, elementwise_affine=False).double()
    x = tokens(4, 50, dtype=torch.float64) * (1.0 + 0.2 * normal(4, 50, 1, dtype=torch.float64, seed=8))
    program = program_of(lambda m, x: m.norm(x), x, norm=norm)
    (fit,) = measured(program, x).values()
    wanted = output(program, x)
    error = (output(swapped(program, x), x) - wanted).square().mean() / wanted.square().mean()
    assert 0.1 < fit.score < 0.3
    # Sums of 3200 squares in float64.
    assert math.sqrt(float(error)) == pytest.approx(fit.score, rel=1e-9)


def test_channels_of_images_keep_their_axis() -> None:
    x = normal(4, 8, 5, 6)
    program = program_of(lambda m, x: m.group(m.batch(x)), x, batch=nn.BatchNorm2d(8), group=nn.GroupNorm(2, 8))
    fits = measured(program, x)
    after = {
        "aten._native_batch_norm_legit_no_training": 0,
        "aten.group_norm": 0,
        "aten.mul.Tensor": 2,
        "aten.add.Tensor": 2,
    }
    run = assert_rewrites(SwapNorm(fits=fits), program, before={"aten.group_norm": 1}, after=after)
    shapes = {name: tuple(t.shape) for name, t in run.program.tensors.items()}
    assert set(shapes.values()) == {(8, 1, 1)}


def test_an_eval_batch_norm_is_swapped_exactly() -> None:
    x = normal(4, 8, 5, dtype=torch.float64)
    program = program_of(lambda m, x: m.norm(x), x, norm=nn.BatchNorm1d(8).double())
    # A root and two products in float64.
    torch.testing.assert_close(output(swapped(program, x), 3.0 * x), output(program, 3.0 * x), rtol=1e-12, atol=1e-12)


def test_a_written_gain_and_cast_go_with_the_norm() -> None:
    x = tokens(4, 9).to(torch.bfloat16)
    gain = nn.Parameter(torch.ones(WIDTH, dtype=torch.bfloat16))
    norm = nn.RMSNorm(WIDTH, eps=1e-5, elementwise_affine=False)
    program = program_of(lambda m, x: m.norm(x.float()).to(x.dtype) * m.gain, x, norm=norm, gain=gain)
    made = swapped(program, x)
    assert [str(n.target) for n in made.graph.nodes if n.op == "call_function"] == [
        "aten._to_copy.default",
        "aten.mul.Tensor",
        "aten._to_copy.default",
    ]
    assert output(made, x).dtype is torch.bfloat16


def test_free_sizes_stay_free() -> None:
    program = program_of(
        lambda m, x: m.norm(x), normal(3, WIDTH, 4), norm=nn.GroupNorm(2, WIDTH), free={0: "batch", 2: "length"}
    )
    made = swapped(program, normal(3, WIDTH, 4), force=True)
    assert made.shape("output") == program.shape("output") == ("batch", WIDTH, "length")


def test_a_trained_scale_and_shift_take_the_place_of_the_measured_ones() -> None:
    x = tokens(4, 9, dtype=torch.float64)
    program = alone("rms", torch.float64)
    (fit,) = measured(program, x).values()
    scale, shift = normal(WIDTH, dtype=torch.float64, seed=1), normal(WIDTH, dtype=torch.float64, seed=2)
    trained = dataclasses.replace(fit, scale=scale, shift=shift)
    made = swapped(program, x, fits={fit.site: trained})
    torch.testing.assert_close(output(made, x), scale * x + shift, rtol=1e-15, atol=1e-15)  # the same two operations


def test_a_centred_layer_norm_becomes_the_rms_norm_of_the_same_gain_and_shift() -> None:
    x = tokens(4, 9, dtype=torch.float64)
    x = x - x.mean(-1, keepdim=True)
    program = alone("layer", torch.float64)
    made = swapped(program, x, to="rms")
    assert [str(n.target) for n in made.graph.nodes if n.op == "call_function"] == [
        "aten.rms_norm.default",
        "aten.add.Tensor",
    ]
    # The mean of what was centred, within rounding.
    torch.testing.assert_close(output(made, x), output(program, x), rtol=1e-12, atol=1e-12)


def test_the_error_of_an_rms_norm_is_that_of_the_mean_it_leaves_in() -> None:
    x = tokens(4, 9, dtype=torch.float64)
    x = x - x.mean(-1, keepdim=True)
    x = x / x.square().mean(-1, keepdim=True).sqrt() + 0.7
    program = program_of(lambda m, x: m.norm(x), x, norm=nn.LayerNorm(WIDTH, eps=1e-12, elementwise_affine=False))
    program.tensors.update({n: t.double() for n, t in program.tensors.items()})
    (fit,) = measured(program, x).values()
    layer, rooted = output(program, x), x / x.square().mean(-1, keepdim=True).sqrt()
    error = ((rooted - layer).square().mean() / layer.square().mean()).sqrt()
    # Sums of 576 squares in float64.
    assert error_of_rms(fit) == pytest.approx(float(error), rel=1e-9)


# What is refused.


def test_refuses_norms_that_were_not_measured() -> None:
    assert_refuses(SwapNorm(), alone("rms"), code="not-measured")


def test_refuses_measurements_of_other_sizes() -> None:
    program = alone("rms")
    (fit,) = measured(program, X).values()
    short = dataclasses.replace(fit, scale=fit.scale[1:])
    assert_refuses(SwapNorm(fits={fit.site: short}), program, code="not-measured")


def test_refuses_norms_that_were_not_chosen() -> None:
    program = alone("rms")
    assert_refuses(SwapNorm(fits=measured(program, X), only="layer_norm+add"), program, code="not-chosen")


def test_swaps_those_that_were_chosen() -> None:
    program = program_of(lambda m, x: m.a(m.b(x).tanh()), X, a=NORMS["rms"](), b=NORMS["rms"]())
    run = run_passes(program, [SwapNorm(fits=measured(program, X), only="rms_norm_1", force=True)])
    assert [a.site for a in run.records[0].applied] == ["rms_norm_1"]
    assert run.records[0].refusal_counts == {"not-chosen": 1}


def test_refuses_an_unsteady_norm_unless_forced() -> None:
    program = alone("rms")
    fits = measured(program, X * (1.0 + 3.0 * normal(4, 9, 1).abs()))
    assert_refuses(SwapNorm(fits=fits), program, code="unsteady-norm")
    assert run_passes(program, [SwapNorm(fits=fits, force=True)]).records[0].applied


def test_refuses_norms_of_massive_activations_unless_forced() -> None:
    program = alone("rms")
    inputs = X.clone()
    inputs[0, 0] *= 50
    fits = measured(program, inputs)
    (fit,) = fits.values()
    assert fit.massive == 1 and fit.score <= SwapNorm().threshold
    assert_refuses(SwapNorm(fits=fits), program, code="massive-activations")
    assert run_passes(program, [SwapNorm(fits=fits, force=True)]).records[0].applied


def test_refuses_an_rms_norm_where_there_is_a_mean_unless_forced() -> None:
    program = alone("layer")
    fits = measured(program, X + 1.0)
    assert_refuses(SwapNorm(to="rms", fits=fits), program, code="not-centred")
    assert run_passes(program, [SwapNorm(to="rms", fits=fits, force=True)]).records[0].applied


def test_refuses_an_rms_norm_in_place_of_a_group_norm() -> None:
    x = normal(4, 8, 5)
    program = program_of(lambda m, x: m.norm(x), x, norm=nn.GroupNorm(2, 8))
    assert_refuses(SwapNorm(to="rms", fits=measured(program, x)), program, code="not-a-norm")


@pytest.mark.parametrize("number", [math.nan, math.inf, 1e39])
def test_refuses_scales_beyond_the_dtype(number: float) -> None:
    program = alone("rms")
    (fit,) = measured(program, X).values()
    scale = fit.scale.clone()
    scale[3] = number
    broken = dataclasses.replace(fit, scale=scale)
    assert_refuses(SwapNorm(fits={fit.site: broken}), program, code="not-finite")


def test_refuses_norms_over_several_axes() -> None:
    program = alone("layer over two axes")
    assert_refuses(SwapNorm(), program, code="unsupported-spelling")


def test_refuses_values_without_a_recorded_shape() -> None:
    program = alone("rms").copy()
    del program.node("x").meta["val"]
    assert_refuses(SwapNorm(), program, code="missing-metadata")


def test_says_what_can_take_a_norms_place() -> None:
    with pytest.raises(UserError, match="is none of power, unified, frozen, batch, rms"):
        SwapNorm(to="layer")
