"""Ten right passes: identities of real arithmetic that round differently from what they replace."""

import math
from typing import Any, ClassVar

import torch
from torch import fx

from flowopt.rewrite import Edit, Exactness, RewritePass, Site
from tests.goals.planted_wrong import first_input

aten = torch.ops.aten


class ReassociateSum(RewritePass[fx.Node]):
    """(a + b) + c -> a + (b + c)."""

    exactness: ClassVar[Exactness] = Exactness.EXACT
    anchors: ClassVar[tuple[Any, ...]] = (aten.add.Tensor,)

    def check(self, site: Site) -> fx.Node:
        inner = first_input(site.node)
        site.require(inner.target is aten.add.Tensor, "unsupported-spelling", "the left summand is no sum", inner)
        site.require(len(inner.users) == 1, "multiple-readers", "the inner sum is read elsewhere", inner)
        return inner

    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        rest = edit.call(aten.add.Tensor, plan.args[1], edit.anchor.args[1])
        edit.replace(edit.anchor, edit.call(aten.add.Tensor, plan.args[0], rest))
        return "reassociated"


class SplitLinear(RewritePass[fx.Node]):
    """linear(x, W, b) -> cat(linear(x, W[:h], b[:h]), linear(x, W[h:], b[h:]))."""

    exactness: ClassVar[Exactness] = Exactness.EXACT
    anchors: ClassVar[tuple[Any, ...]] = (aten.linear.default,)

    def check(self, site: Site) -> fx.Node:
        site.constant(site.node.args[1], "the weight")
        site.require(len(site.node.args) == 3, "unsupported-spelling", "there is no bias")
        return site.node

    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        x, *stored = plan.args
        half = edit.constant(stored[0]).shape[0] // 2  # type: ignore[arg-type]  # checked to be stored
        parts = []
        for rows in (slice(None, half), slice(half, None)):
            made = [
                edit.parameter(f"{n.target}.part", edit.constant(n)[rows], like=n)
                for n in stored
                if isinstance(n, fx.Node)
            ]
            parts.append(edit.call(aten.linear.default, x, *made))
        edit.replace(plan, edit.call(aten.cat.default, parts, -1))
        return "split"


class DivisionToProduct(RewritePass[fx.Node]):
    """x / c -> x * (1 / c): the reciprocal is rounded, in float64 too."""

    exactness: ClassVar[Exactness] = Exactness.EXACT
    anchors: ClassVar[tuple[Any, ...]] = (aten.div.Tensor,)

    def check(self, site: Site) -> fx.Node:
        site.require(isinstance(site.node.args[1], float), "not-constant", "the divisor is no number")
        return first_input(site.node)

    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        divisor = edit.anchor.args[1]
        assert isinstance(divisor, float)
        edit.replace(edit.anchor, edit.call(aten.mul.Tensor, plan, 1.0 / divisor))
        return "multiplied"


class ConvAsUnfold(RewritePass[fx.Node]):
    """conv2d(x, W, b) -> W_2d @ im2col(x) + b, for one group."""

    exactness: ClassVar[Exactness] = Exactness.EXACT
    anchors: ClassVar[tuple[Any, ...]] = (aten.conv2d.default,)

    def check(self, site: Site) -> fx.Node:
        site.constant(site.node.args[1], "the weight")
        site.require(len(site.node.args) == 5, "unsupported-spelling", "dilation and groups are not their defaults")
        width = site.recorded(site.node).shape[3]
        site.require(isinstance(width, int), "dynamic-shape", "the width is free")
        return site.node

    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        x, weight, bias, stride, padding = plan.args
        assert isinstance(x, fx.Node) and isinstance(weight, fx.Node) and isinstance(bias, fx.Node)
        value = edit.constant(weight)
        matrix = edit.parameter(f"{weight.target}.matrix", value.flatten(1), like=weight)
        column = edit.parameter(f"{bias.target}.column", edit.constant(bias).reshape(-1, 1), like=bias)
        patches = edit.call(aten.im2col.default, x, list(value.shape[2:]), [1, 1], padding, stride)
        flat = edit.call(aten.add.Tensor, edit.call(aten.matmul.default, matrix, patches), column)
        shape = [edit.call(aten.sym_size.int, x, 0), value.shape[0], -1, plan.meta["val"].shape[3]]
        edit.replace(plan, edit.call(aten.reshape.default, flat, shape))
        return "unfolded"


class BatchNormAsMulAdd(RewritePass[fx.Node]):
    """batch_norm(x) -> x * s + t, per channel."""

    exactness: ClassVar[Exactness] = Exactness.EXACT
    anchors: ClassVar[tuple[Any, ...]] = (aten._native_batch_norm_legit_no_training.default,)

    def check(self, site: Site) -> fx.Node:
        (value,) = site.node.users
        return value

    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        x, gain, shift, mean, variance, _, eps = edit.anchor.args
        stored = [edit.constant(n) for n in (gain, shift, mean, variance) if isinstance(n, fx.Node)]
        scale = stored[0] * torch.rsqrt(stored[3] + float(eps))  # type: ignore[arg-type]  # a number
        assert isinstance(gain, fx.Node) and isinstance(x, fx.Node)
        shape = [-1] + [1] * (x.meta["val"].dim() - 2)
        s = edit.parameter("scale", scale.reshape(shape), like=gain)
        t = edit.parameter("shift", (stored[1] - scale * stored[2]).reshape(shape), like=gain)
        edit.replace(plan, edit.call(aten.add.Tensor, edit.call(aten.mul.Tensor, x, s), t))
        return "multiplied and added"


class DecomposeLayerNorm(RewritePass[fx.Node]):
    """layer_norm(x) -> (x - m) * rsqrt(mean((x - m)^2) + eps) * g + b."""

    exactness: ClassVar[Exactness] = Exactness.EXACT
    anchors: ClassVar[tuple[Any, ...]] = (aten.layer_norm.default,)

    def check(self, site: Site) -> fx.Node:
        return first_input(site.node)

    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        gain, shift, *epsilon = edit.anchor.args[2:5]
        centred = edit.call(aten.sub.Tensor, plan, edit.call(aten.mean.dim, plan, [-1], True))
        square = edit.call(aten.mean.dim, edit.call(aten.mul.Tensor, centred, centred), [-1], True)
        root = edit.call(aten.rsqrt.default, edit.call(aten.add.Tensor, square, *(epsilon or [1e-5])))
        scaled = edit.call(aten.mul.Tensor, edit.call(aten.mul.Tensor, centred, root), gain)
        edit.replace(edit.anchor, edit.call(aten.add.Tensor, scaled, shift))
        return "decomposed"


class DecomposeAttention(RewritePass[fx.Node]):
    """attention(q, k, v) -> softmax(q k^T / sqrt(d)) v."""

    exactness: ClassVar[Exactness] = Exactness.EXACT
    anchors: ClassVar[tuple[Any, ...]] = (aten.scaled_dot_product_attention.default,)

    def check(self, site: Site) -> fx.Node:
        site.require(len(site.node.args) == 3, "unsupported-spelling", "there is a mask")
        return site.node

    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        q, k, v = plan.args
        assert isinstance(q, fx.Node)
        scale = 1.0 / math.sqrt(q.meta["val"].shape[-1])
        scores = edit.call(aten.matmul.default, q, edit.call(aten.transpose.int, k, -2, -1))
        weights = edit.call(aten.softmax.int, edit.call(aten.mul.Tensor, scores, scale), -1)
        edit.replace(plan, edit.call(aten.matmul.default, weights, v))
        return "decomposed"


class DecomposeGelu(RewritePass[fx.Node]):
    """gelu(x) -> x / 2 * (1 + erf(x / sqrt(2)))."""

    exactness: ClassVar[Exactness] = Exactness.EXACT
    anchors: ClassVar[tuple[Any, ...]] = (aten.gelu.default,)

    def check(self, site: Site) -> fx.Node:
        site.require(not site.node.kwargs, "unsupported-spelling", "the gelu is an approximation")
        return first_input(site.node)

    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        error = edit.call(aten.erf.default, edit.call(aten.mul.Tensor, plan, math.sqrt(0.5)))
        half = edit.call(aten.mul.Tensor, plan, 0.5)
        edit.replace(edit.anchor, edit.call(aten.mul.Tensor, half, edit.call(aten.add.Tensor, error, 1.0)))
        return "decomposed"


class DecomposeSilu(RewritePass[fx.Node]):
    """silu(x) -> x * sigmoid(x)."""

    exactness: ClassVar[Exactness] = Exactness.EXACT
    anchors: ClassVar[tuple[Any, ...]] = (aten.silu.default,)

    def check(self, site: Site) -> fx.Node:
        return first_input(site.node)

    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        edit.replace(edit.anchor, edit.call(aten.mul.Tensor, plan, edit.call(aten.sigmoid.default, plan)))
        return "decomposed"


class MoveTransposes(RewritePass[fx.Node]):
    """a^T + b^T -> (a + b)^T."""

    exactness: ClassVar[Exactness] = Exactness.EXACT
    anchors: ClassVar[tuple[Any, ...]] = (aten.add.Tensor,)

    def check(self, site: Site) -> fx.Node:
        left, right = site.node.args[:2]
        for side in (left, right):
            is_moved = isinstance(side, fx.Node) and side.target in (aten.transpose.int, aten.permute.default)
            site.require(is_moved, "unsupported-spelling", "a summand is not transposed")
        assert isinstance(left, fx.Node) and isinstance(right, fx.Node)
        same = (left.target, left.args[1:]) == (right.target, right.args[1:])
        site.require(same, "axis-mismatch", "the summands are transposed differently")
        return left

    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        left, right = (first_input(n) for n in edit.anchor.args[:2] if isinstance(n, fx.Node))
        total = edit.call(aten.add.Tensor, left, right)
        edit.replace(edit.anchor, edit.call(plan.target, total, *plan.args[1:]))
        return "moved"
