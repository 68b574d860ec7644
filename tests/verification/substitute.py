"""Passes from one line: replace every call of an operator by what a function builds."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx, nn

from flowopt.pipeline.runner import run_passes
from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.report.passes import PassRecord
from flowopt.rewrite import Edit, Exactness, RewritePass, Site
from flowopt.verification.verify_passes import VerifyPasses
from tests.zoo.models import randomise

aten = torch.ops.aten
Build = Callable[[Edit, Any], fx.Node]


def substitute(anchor: Any, build: Build, exactness: Exactness = Exactness.EXACT) -> RewritePass:
    """A pass that claims ``build`` makes the value of every ``anchor``."""

    def check(self: Any, site: Site) -> fx.Node:
        site.require("rewritten_by" not in site.node.meta, "already-rewritten", "made by this pass")
        return site.node

    def rewrite(self: Any, edit: Edit, plan: fx.Node) -> str:
        edit.replace(plan, build(edit, plan))
        return "substituted"

    members = {"exactness": exactness, "anchors": (anchor,), "check": check, "rewrite": rewrite}
    made: RewritePass = type("Substitute", (RewritePass,), members)()
    return made


class Model(nn.Module):
    """linear -> the function under test -> linear, over (batch, sequence, 8)."""

    def __init__(self, body: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(self.body(self.first(x)))
        return result


@cache
def captured(body: Callable[[Tensor], Tensor]) -> Program:
    """The model with random weights; free batch and sequence, traced at sizes that are even and differ."""
    module = Model(body)
    randomise(module, seed=3)
    x = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(3))
    dims: dict[str, tuple[int, int | None]] = {"batch": (1, 32), "sequence": (1, 32)}
    return capture(module.eval(), (x,), dynamic={"x": {0: "batch", 1: "sequence"}}, dims=dims)


def judged(program: Program, rewrite_pass: RewritePass, seed: int = 0) -> PassRecord:
    """The record of one verified pass."""
    (record,) = run_passes(program, [rewrite_pass], [VerifyPasses(seed=seed)]).records
    assert record.applied, record.refused
    return record
