"""Ten wrong passes. Each is right where a careless test would look."""

import operator
from typing import Any, ClassVar

import torch
from torch import fx

from flowopt.rewrite import Edit, Exactness, RewritePass, Site
from tests.goals.planted_models import TRACED_LENGTH

aten = torch.ops.aten


class DropBias(RewritePass[fx.Node]):
    """linear(x, W, b) -> linear(x, W)."""

    exactness: ClassVar[Exactness] = Exactness.EXACT
    anchors: ClassVar[tuple[Any, ...]] = (aten.linear.default,)

    def check(self, site: Site) -> fx.Node:
        site.require(len(site.node.args) == 3, "unsupported-spelling", "there is no bias")
        return site.node

    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        edit.replace(plan, edit.call(aten.linear.default, *plan.args[:2]))
        return "dropped the bias"


class DropRelu(RewritePass[fx.Node]):
    """relu(x) -> x."""

    exactness: ClassVar[Exactness] = Exactness.EXACT
    anchors: ClassVar[tuple[Any, ...]] = (aten.relu.default,)

    def check(self, site: Site) -> fx.Node:
        return first_input(site.node)

    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        edit.replace(edit.anchor, plan)
        return "dropped"


class ShiftBatchOne(RewritePass[fx.Node]):
    """relu(x) -> relu(x) + max(2 - batch, 0) / 100: a correction for the sample size that vanishes from 2 on."""

    exactness: ClassVar[Exactness] = Exactness.EXACT
    anchors: ClassVar[tuple[Any, ...]] = (aten.relu.default,)

    def check(self, site: Site) -> fx.Node:
        return first_input(site.node)

    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        batch = edit.call(aten.scalar_tensor.default, edit.call(aten.sym_size.int, plan, 0), dtype=torch.float32)
        correction = edit.call(
            aten.div.Tensor, edit.call(aten.clamp.default, edit.call(aten.rsub.Scalar, batch, 2), 0), 100
        )
        edit.replace(edit.anchor, edit.call(aten.add.Tensor, edit.call(aten.relu.default, plan), correction))
        return "corrected"


class MeanOfHalves(RewritePass[fx.Node]):
    """mean(x) -> (mean(first half) + mean(second half)) / 2, which holds for even lengths."""

    exactness: ClassVar[Exactness] = Exactness.EXACT
    anchors: ClassVar[tuple[Any, ...]] = (aten.mean.dim,)

    def check(self, site: Site) -> fx.Node:
        site.require(site.node.args[1] == [1], "axis-mismatch", "the mean is over another axis")
        return first_input(site.node)

    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        half = edit.call(operator.floordiv, edit.call(aten.sym_size.int, plan, 1), 2)
        parts = [
            edit.call(aten.mean.dim, edit.call(aten.slice.Tensor, plan, 1, *rows), [1])
            for rows in ((0, half), (half, 2**62))
        ]
        edit.replace(edit.anchor, edit.call(aten.div.Tensor, edit.call(aten.add.Tensor, *parts), 2))
        return "halved"


class RootOfSquare(RewritePass[fx.Node]):
    """sqrt(x ** 2) -> x."""

    exactness: ClassVar[Exactness] = Exactness.EXACT
    anchors: ClassVar[tuple[Any, ...]] = (aten.sqrt.default,)

    def check(self, site: Site) -> fx.Node:
        square = first_input(site.node)
        is_square = square.target is aten.pow.Tensor_Scalar and bool(square.args[1] == 2)
        site.require(is_square, "unsupported-spelling", "it is no root of a square", square)
        return first_input(square)

    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        edit.replace(edit.anchor, plan)
        return "cancelled"


class EpsilonOutside(RewritePass[fx.Node]):
    """rsqrt(v + eps) -> 1 / (sqrt(v) + eps)."""

    exactness: ClassVar[Exactness] = Exactness.EXACT
    anchors: ClassVar[tuple[Any, ...]] = (aten.rsqrt.default,)

    def check(self, site: Site) -> fx.Node:
        addition = first_input(site.node)
        site.require(addition.target is aten.add.Tensor, "unsupported-spelling", "no epsilon is added", addition)
        return addition

    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        variance, epsilon = plan.args[:2]
        root = edit.call(aten.add.Tensor, edit.call(aten.sqrt.default, variance), epsilon)
        edit.replace(edit.anchor, edit.call(aten.reciprocal.default, root))
        return "moved the epsilon"


class PlainGelu(RewritePass[fx.Node]):
    """gelu(x, approximate="tanh") -> gelu(x)."""

    exactness: ClassVar[Exactness] = Exactness.EXACT
    anchors: ClassVar[tuple[Any, ...]] = (aten.gelu.default,)

    def check(self, site: Site) -> fx.Node:
        site.require(bool(site.node.kwargs), "already-canonical", "the gelu is exact")
        return first_input(site.node)

    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        edit.replace(edit.anchor, edit.call(aten.gelu.default, plan))
        return "forgot the approximation"


class ScaleSlightly(RewritePass[fx.Node]):
    """linear(x, W, b) -> linear(x, (1 + 1e-6) W, b): about eight units in the last place."""

    exactness: ClassVar[Exactness] = Exactness.EXACT
    anchors: ClassVar[tuple[Any, ...]] = (aten.linear.default,)

    factor: float = 1.0 + 1e-6

    def check(self, site: Site) -> fx.Node:
        site.constant(site.node.args[1], "the weight")
        site.require("scaled" not in str(site.node.args[1]), "already-rewritten", "it is scaled")
        return site.node

    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        weight = plan.args[1]
        assert isinstance(weight, fx.Node)
        scaled = edit.parameter(f"{weight.target}.scaled", self.factor * edit.constant(weight), like=weight)
        edit.replace(plan, edit.call(aten.linear.default, plan.args[0], scaled, *plan.args[2:]))
        return "scaled"


class SwallowNan(RewritePass[fx.Node]):
    """relu(x) -> relu(nan_to_num(x)), which is bitwise the same for every finite x."""

    exactness: ClassVar[Exactness] = Exactness.EXACT
    anchors: ClassVar[tuple[Any, ...]] = (aten.relu.default,)

    def check(self, site: Site) -> fx.Node:
        return first_input(site.node)

    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        edit.replace(edit.anchor, edit.call(aten.relu.default, edit.call(aten.nan_to_num.default, plan)))
        return "made safe"


class TracedMean(RewritePass[fx.Node]):
    """mean(x) -> sum(x) / n with the n of the example."""

    exactness: ClassVar[Exactness] = Exactness.EXACT
    anchors: ClassVar[tuple[Any, ...]] = (aten.mean.dim,)

    def check(self, site: Site) -> fx.Node:
        site.require(site.node.args[1] == [1], "axis-mismatch", "the mean is over another axis")
        return first_input(site.node)

    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        total = edit.call(aten.sum.dim_IntList, plan, [1])
        edit.replace(edit.anchor, edit.call(aten.div.Tensor, total, float(TRACED_LENGTH)))
        return "divided by the traced length"


def first_input(node: fx.Node) -> fx.Node:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source
