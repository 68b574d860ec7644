"""Small passes and programs for tests of the engine."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn

from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.rewrite import Edit, Exactness, RewritePass, Site

aten = torch.ops.aten


class Chain(nn.Module):
    """relu(relu(x @ W1 + b1)) @ W2 + b2, then a doubled negation."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 5)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(torch.relu(self.first(x)))
        return torch.neg(torch.neg(self.second(y)))


def chain() -> Program:
    """A copy of its own for every test."""
    return _captured().copy()


@cache
def _captured() -> Program:
    return capture(Chain().eval(), (torch.zeros(5, 3),), dynamic={"x": {0: "batch"}}, dims={"batch": (1, 64)})


@dataclass(frozen=True, slots=True)
class Inner:
    """The node whose value the site may take."""

    value: fx.Node


class DropDoubleRelu(RewritePass[Inner]):
    """relu(relu(x)) = relu(x)."""

    exactness: ClassVar[Exactness] = Exactness.EXACT
    anchors: ClassVar[tuple[Any, ...]] = (aten.relu.default,)

    def check(self, site: Site) -> Inner:
        inner = site.node.args[0]
        if not isinstance(inner, fx.Node) or inner.target is not aten.relu.default:
            site.refuse("not-linear-producer", "no relu comes before it")
        return Inner(inner)

    def rewrite(self, edit: Edit, plan: Inner) -> str:
        edit.replace(edit.anchor, plan.value)
        return "dropped"


class DropDoubleNegation(RewritePass[Inner]):
    """neg(neg(x)) = x, found at the first of the two: the second disappears, though it is an anchor too."""

    exactness: ClassVar[Exactness] = Exactness.EXACT
    anchors: ClassVar[tuple[Any, ...]] = (aten.neg.default,)

    def check(self, site: Site) -> Inner:
        outer = next(iter(site.node.users))
        site.require(outer.target is aten.neg.default, "not-linear-reader", f"{outer.name} is no negation", outer)
        return Inner(outer)

    def rewrite(self, edit: Edit, plan: Inner) -> str:
        source = edit.anchor.args[0]
        assert isinstance(source, fx.Node)
        edit.replace(plan.value, source)
        return "dropped"


class SplitLinear(RewritePass[None]):
    """linear(x, W, b) = cat(linear(x, W[:h], b[:h]), linear(x, W[h:], b[h:])). Does not fire twice at one weight."""

    exactness: ClassVar[Exactness] = Exactness.EXACT
    anchors: ClassVar[tuple[Any, ...]] = (aten.linear.default,)

    def check(self, site: Site) -> None:
        weight = site.constant(site.node.args[1], "the weight")
        site.require(weight.shape[0] > 2, "unsupported-spelling", f"{weight.shape[0]} rows are too few")

    def rewrite(self, edit: Edit, plan: None) -> str:
        x, weight, bias = edit.anchor.args
        assert isinstance(weight, fx.Node) and isinstance(bias, fx.Node)
        half = edit.constant(weight).shape[0] // 2
        parts = []
        for rows in (slice(None, half), slice(half, None)):
            w = edit.parameter(f"{weight.target}.part", edit.constant(weight)[rows], like=weight)
            b = edit.parameter(f"{bias.target}.part", edit.constant(bias)[rows], like=bias)
            parts.append(edit.call(aten.linear.default, x, w, b))
        edit.replace(edit.anchor, edit.call(aten.cat.default, parts, -1))
        return f"split after row {half}"


class RefuseFirst(RewritePass[Inner]):
    """relu -> clamp(min 0), but the first site refuses until the second has been rewritten."""

    exactness: ClassVar[Exactness] = Exactness.EXACT
    anchors: ClassVar[tuple[Any, ...]] = (aten.relu.default,)

    def check(self, site: Site) -> Inner:
        others = [u for u in site.node.users if u.target is aten.relu.default]
        site.require(not others, "multiple-readers", f"{site.node.name} is read by a relu", *others)
        return Inner(site.node)

    def rewrite(self, edit: Edit, plan: Inner) -> str:
        edit.replace(plan.value, edit.call(aten.clamp.default, plan.value.args[0], 0))
        return "clamped"


class NamedSites(RewritePass[Inner]):
    """A pass whose ``sites`` fail."""

    exactness: ClassVar[Exactness] = Exactness.EXACT

    def sites(self, program: Program) -> Iterable[fx.Node]:
        return [program.node("nowhere")]

    def check(self, site: Site) -> Inner:
        return Inner(site.node)

    def rewrite(self, edit: Edit, plan: Inner) -> str:
        return "never"
