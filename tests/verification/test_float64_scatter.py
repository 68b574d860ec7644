"""Where the original has lost all digits, float64's own scatter is measured, and is what a rewrite may differ by."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from flowopt.passes.fold.fold_norm_affine import FoldNormAffine
from flowopt.pipeline.runner import run_passes
from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.report.passes import PassRecord
from flowopt.rewrite import Edit, RewritePass
from flowopt.verification import track
from flowopt.verification.evidence import CaseEvidence, collect_evidence
from flowopt.verification.float64_scatter import float64_scatter, is_saturated
from flowopt.verification.verify_passes import VerifyPasses
from tests.verification.substitute import substitute
from tests.zoo.models import randomise

aten = torch.ops.aten
LAYERS = 5
WIDTH = 32
GAIN = 50.0


class Folded(nn.Module):
    """Sines of sines: each layer makes errors many times as large, and what stands for a norm bounds no input."""

    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.ParameterList(nn.Parameter(torch.ones(WIDTH)) for _ in range(LAYERS))
        self.shifts = nn.ParameterList(nn.Parameter(torch.zeros(WIDTH)) for _ in range(LAYERS))
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        for scale, shift, layer in zip(self.scales, self.shifts, self.layers, strict=True):
            x = torch.sin(GAIN * layer(x * scale + shift))
        pooled: Tensor = self.head(x.mean(1))
        return pooled


@cache
def program() -> Program:
    model = Folded()
    randomise(model, seed=5)
    x = torch.randn(3, 12, WIDTH, generator=torch.Generator().manual_seed(5))
    return capture(model.eval(), (x,), dynamic={"x": {0: "batch"}}, dims={"batch": (1, 8)})


@cache
def evidence() -> tuple[CaseEvidence, ...]:
    return collect_evidence(program()).cases


def saturated() -> CaseEvidence:
    return next(one for one in evidence() if any(map(is_saturated, one.outputs.values())))


def judged(rewrite: RewritePass) -> PassRecord:
    (record,) = run_passes(program(), [rewrite], [VerifyPasses()]).records
    return record


def test_ordinary_inputs_are_not_saturated_and_spikes_are() -> None:
    by_name = {one.case.name: any(map(is_saturated, one.outputs.values())) for one in evidence()}
    assert by_name["traced"] is False
    assert any(by_name.values())


def test_the_scatter_is_far_above_what_float32_promises() -> None:
    one = saturated()
    (name, found), *_ = float64_scatter(program(), one, seed=0).items()
    known = one.outputs[name]
    assert known.own_error is not None
    promised = float(known.own_error.max()) * torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
    assert float(found.max()) > 2 * promised


def test_rows_that_are_not_saturated_scatter_by_nothing() -> None:
    one = next(one for one in evidence() if one.case.name == "traced")
    assert float64_scatter(program(), one, seed=0) == {}


def test_a_right_fold_is_kept_where_float32_says_nothing() -> None:
    assert judged(FoldNormAffine()).outcome == "kept"


def test_without_the_scatter_the_same_fold_was_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(track, "is_saturated", lambda _: False)
    record = judged(FoldNormAffine())
    assert record.outcome == "reverted"
    assert "twin gate" in record.reason


def test_a_rewrite_that_is_off_by_a_billionth_is_still_undone() -> None:
    def off(edit: Edit, anchor: fx.Node) -> fx.Node:
        made = edit.call(aten.mean.dim, *anchor.args)
        return edit.call(aten.mul.Scalar, made, 1 + 4e-9)

    wrong: Any = substitute(aten.mean.dim, off)
    record = judged(wrong)
    assert record.outcome == "reverted"
    assert "traced" in record.reason
