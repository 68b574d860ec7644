"""A norm or a softmax in 16 bits is taken apart with casts, or not at all."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from flowopt.pipeline.instrument import PassRun
from flowopt.pipeline.runner import run_passes
from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.report.verdict import Finding
from flowopt.rewrite import RewritePass
from flowopt.verification.sites.sixteen_bit import sixteen_bit_findings
from flowopt.workflows.pipelines import Pipeline
from tests.verification.decompositions import (
    DECOMPOSITIONS,
    Formula,
    attention,
    every_kernel,
    layer_norm,
    mean,
    narrow,
    rms_norm,
    root,
    shifted,
    squares,
    total,
    variance,
    wide,
    with_casts,
    without_casts,
)
from tests.verification.substitute import Build, Model, aten, judged, substitute
from tests.zoo.models import randomise

NARROW = (torch.float16, torch.bfloat16)
LAYER_NORM, RMS_NORM, SOFTMAX = aten.layer_norm.default, aten.rms_norm.default, aten.softmax.int
ATTENTION = aten.scaled_dot_product_attention.default


class Findings:
    """Collects the findings of every pass of a run; judges nothing."""

    def __init__(self) -> None:
        self.found: list[Finding] = []
        self.runs = 0

    def start(self, program: Program) -> None: ...

    def judge(self, run: PassRun) -> None:
        self.runs += 1
        self.found += sixteen_bit_findings(run)

    def keep(self, run: PassRun) -> None: ...


def captured(module: nn.Module, dtype: torch.dtype) -> Program:
    randomise(module, seed=3)
    x = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(3)).to(dtype)
    return capture(module.to(dtype).eval(), (x,), dynamic={"x": {0: "batch"}}, dims={"batch": (1, 32)})


@cache
def program(dtype: torch.dtype, body: Callable[[Tensor], Tensor] = every_kernel) -> Program:
    return captured(Model(body), dtype)


def findings(given: Program, rewrite_pass: RewritePass) -> list[Finding]:
    collected = Findings()
    run_passes(given, [rewrite_pass], [collected])
    assert collected.runs, "the pass did not fire"
    return collected.found


def named(value: object) -> str | None:
    return getattr(value, "__name__", None)


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("formula", DECOMPOSITIONS, ids=named)
def test_a_decomposition_without_casts_is_a_finding(formula: Formula, dtype: torch.dtype) -> None:
    kernel = DECOMPOSITIONS[formula]
    (found,) = findings(program(dtype), substitute(kernel, without_casts(formula)))
    assert found.gate == "precision"
    assert found.message.startswith(f"{kernel.overloadpacket.__name__} of {dtype}")
    assert "cast to float32 before the reduction and back after" in found.message


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("formula", DECOMPOSITIONS, ids=named)
def test_a_decomposition_with_casts_is_none(formula: Formula, dtype: torch.dtype) -> None:
    assert not findings(program(dtype), substitute(DECOMPOSITIONS[formula], with_casts(formula)))


@pytest.mark.parametrize("formula", DECOMPOSITIONS, ids=named)
def test_in_float32_everything_may_be_taken_apart(formula: Formula) -> None:
    assert not findings(program(torch.float32), substitute(DECOMPOSITIONS[formula], without_casts(formula)))


def squares_before_the_cast(edit: Any, node: fx.Node) -> fx.Node:
    average = mean(edit, wide(edit, squares(edit, node.args[0])))
    return edit.call(aten.mul.Tensor, node.args[0], narrow(edit, root(edit, average), node))


def exponentials_before_the_cast(edit: Any, node: fx.Node) -> fx.Node:
    exponential = wide(edit, edit.call(aten.exp.default, node.args[0]))
    return narrow(edit, edit.call(aten.div.Tensor, exponential, total(edit, exponential)), node)


def root_after_the_cast_back(edit: Any, node: fx.Node) -> fx.Node:
    average = narrow(edit, mean(edit, squares(edit, wide(edit, node.args[0]))), node)
    return edit.call(aten.mul.Tensor, node.args[0], root(edit, average))


@pytest.mark.parametrize(
    ("kernel", "build", "part"),
    [
        (RMS_NORM, squares_before_the_cast, "mul"),
        (SOFTMAX, exponentials_before_the_cast, "exp"),
        (RMS_NORM, root_after_the_cast_back, "rsqrt"),
    ],
    ids=named,
)
def test_a_part_that_the_casts_leave_out_is_named(kernel: Any, build: Build, part: str) -> None:
    (found,) = findings(program(torch.float16), substitute(kernel, build))
    assert f"became {part} in torch.float16" in found.message


def scaled_after_the_cast_back(edit: Any, node: fx.Node) -> fx.Node:
    x = wide(edit, node.args[0])
    return edit.call(aten.mul.Tensor, node.args[0], narrow(edit, root(edit, mean(edit, squares(edit, x))), node))


def centred_after_the_cast_back(edit: Any, node: fx.Node) -> fx.Node:
    x = wide(edit, node.args[0])
    difference = edit.call(aten.sub.Tensor, node.args[0], narrow(edit, mean(edit, x), node))
    return edit.call(aten.mul.Tensor, difference, narrow(edit, root(edit, variance(edit, x)), node))


def sum_of_wider_type(edit: Any, node: fx.Node) -> fx.Node:
    exponential = edit.call(aten.exp.default, wide(edit, shifted(edit, node.args[0])))
    added = edit.call(aten.sum.dim_IntList, exponential, [-1], True, dtype=torch.float32)
    return narrow(edit, edit.call(aten.div.Tensor, exponential, added), node)


def other_softmax(edit: Any, node: fx.Node) -> fx.Node:
    return edit.call(aten._softmax.default, node.args[0], -1, False)


def same_norm(edit: Any, node: fx.Node) -> fx.Node:
    return edit.call(node.target, *node.args)


def softmax_in_attention(edit: Any, node: fx.Node) -> fx.Node:
    return attention(edit, node.args[0], lambda e, scores: e.call(SOFTMAX, scores, -1))


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize(
    ("kernel", "build"),
    [
        (RMS_NORM, scaled_after_the_cast_back),
        (LAYER_NORM, centred_after_the_cast_back),
        (SOFTMAX, sum_of_wider_type),
        (SOFTMAX, other_softmax),
        (RMS_NORM, same_norm),
        (ATTENTION, softmax_in_attention),
    ],
    ids=named,
)
def test_another_kernel_and_wide_sums_are_no_findings(kernel: Any, build: Build, dtype: torch.dtype) -> None:
    assert not findings(program(dtype), substitute(kernel, build))


def beside_a_kernel(x: Tensor) -> Tensor:
    return functional.layer_norm(x, (8,)) * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-5)


def test_a_norm_written_by_hand_in_16_bits_may_stay_so() -> None:
    def inverse_root(edit: Any, node: fx.Node) -> fx.Node:
        return edit.call(aten.reciprocal.default, edit.call(aten.sqrt.default, node.args[0]))

    assert not findings(program(torch.float16, beside_a_kernel), substitute(aten.rsqrt.default, inverse_root))


@pytest.mark.parametrize("is_cast", [True, False])
def test_parts_that_the_old_side_has_too_are_not_counted(is_cast: bool) -> None:
    def build(edit: Any, node: Any) -> fx.Node:
        if getattr(node.args[0], "target", None) is not LAYER_NORM:
            return edit.call(node.target, *node.args)
        kernel, x = node.args[0], node.args[0].args[0]
        norm = (with_casts if is_cast else without_casts)(layer_norm)(edit, kernel)
        return edit.call(aten.mul.Tensor, norm, root(edit, mean(edit, squares(edit, x))))

    found = findings(program(torch.float16, beside_a_kernel), substitute(aten.mul.Tensor, build))
    assert bool(found) is not is_cast


def averaged(x: Tensor) -> Tensor:
    return functional.layer_norm(x, (8,)).mean(1, keepdim=True) - x


def test_a_mean_beside_a_kept_norm_is_no_part_of_one() -> None:
    def rebuilt(edit: Any, node: Any) -> fx.Node:
        norm = node.args[0].args[0]  # sub <- mean <- layer norm
        average = edit.call(aten.mean.dim, edit.call(norm.target, *norm.args), [1], True)
        return edit.call(aten.sub.Tensor, average, node.args[1])

    assert not findings(program(torch.float16, averaged), substitute(aten.sub.Tensor, rebuilt))


class Foldable(nn.Module):
    """A batch norm behind a convolution, an affine norm before a linear layer, and a spelling to canonicalize."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.batch = nn.Conv1d(6, 6, 1), nn.BatchNorm1d(6)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 8)
        self.matrix = nn.Parameter(torch.zeros(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = torch.softmax(self.head(self.norm(self.batch(self.conv(x)) @ self.matrix)), -1)
        return result


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_the_passes_of_flowopt_give_no_finding(dtype: torch.dtype) -> None:
    collected = Findings()
    records = run_passes(captured(Foldable(), dtype), Pipeline("exact").passes, [collected]).records
    fired = {r.name for r in records if r.outcome == "kept"}
    assert {"canonicalize-aten", "fold-batch-norm", "fold-norm-affine"} <= fired
    assert not collected.found


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_verification_reverts_it(dtype: torch.dtype) -> None:
    wrong = judged(program(dtype), substitute(RMS_NORM, without_casts(rms_norm)))
    assert wrong.outcome == "reverted"
    assert wrong.verdict is not None and "precision" in {f.gate for f in wrong.verdict.findings}
    right = judged(program(dtype), substitute(RMS_NORM, with_casts(rms_norm)))
    assert right.outcome == "kept", right.reason
