from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from flowopt.pipeline.runner import run_passes
from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.report.passes import PassRecord
from flowopt.rewrite import Edit, Exactness, RewritePass, Site
from flowopt.verification.sites.region import Region, Regions
from flowopt.verification.verify_passes import VerifyPasses
from tests.verification.substitute import aten, captured, judged, substitute
from tests.zoo.models import randomise


def region_of(program: Program, old: str, build: Callable[[Program], fx.Node]) -> Region:
    """Region of the claim that what ``build`` adds to a copy equals the node called ``old``."""
    changed = program.copy()
    node = build(changed)
    return Regions(program).of(old, node)


def added(program: Program, target: Any, *names: str) -> fx.Node:
    with program.graph.inserting_before(program.graph.output_node()):
        return program.graph.call_function(target, tuple(program.node(n) for n in names))


class TestRegion:
    def test_ends_where_both_sides_meet(self) -> None:
        program = captured(torch.sigmoid)
        region = region_of(program, "sigmoid", lambda p: added(p, aten.tanh.default, "linear"))
        assert [n.name for n in region.roots] == ["linear"]
        assert {n.name for n in region.free} == {"linear"}
        assert region.shared == {"linear"}

    def test_stored_tensors_are_inside(self) -> None:
        program = captured(torch.sigmoid)
        region = region_of(program, "linear", lambda p: added(p, aten.linear.default, "x", "first_weight"))
        assert [n.name for n in region.roots] == ["x"]

    def test_values_that_the_old_side_alone_reads_are_roots_too(self) -> None:
        class Two(nn.Module):
            def forward(self, x: Tensor, y: Tensor) -> Tensor:
                return x * y

        program = capture(Two().eval(), (torch.zeros(2, 3), torch.zeros(2, 3)))
        region = region_of(program, "mul", lambda p: added(p, aten.neg.default, "x"))
        assert [n.name for n in region.roots] == ["x", "y"]
        assert region.shared == {"x"}

    def test_goes_up_to_values_that_can_be_anything(self) -> None:
        program = captured(lambda x: torch.tanh(torch.relu(x).transpose(1, 2)).transpose(1, 2))
        region = region_of(program, "tanh", lambda p: added(p, aten.tanh.default, "transpose"))
        assert [n.name for n in region.roots] == ["linear"]
        assert region.shared == {"transpose"}

    def test_a_value_less_its_own_mean_cannot_be_anything(self) -> None:
        program = captured(lambda x: torch.tanh(x - x.mean(-1, keepdim=True)))
        (less_mean,) = (n.name for n in program.graph.find_nodes(op="call_function", target=aten.sub.Tensor))
        region = region_of(program, "tanh", lambda p: added(p, aten.tanh.default, less_mean))
        assert [n.name for n in region.roots] == ["linear"]

    def test_an_embedding_of_ids_that_the_new_side_embeds_again_is_computed(self) -> None:
        class Stream(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.table, self.first, self.second = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 4)

            def forward(self, ids: Tensor) -> Tensor:
                x = self.table(ids)
                x = x + torch.tanh(self.first(x))
                return torch.sin(x + torch.tanh(self.second(x)))

        def again(copy: Program) -> fx.Node:
            with copy.graph.inserting_before(copy.graph.output_node()):
                value = copy.graph.call_function(aten.embedding.default, (copy.node("table_weight"), copy.node("ids")))
                for name in ("tanh", "tanh_1"):
                    value = copy.graph.call_function(aten.add.Tensor, (value, copy.node(name)))
                return copy.graph.call_function(aten.sin.default, (value,))

        module = Stream().eval()
        randomise(module, 1)
        region = region_of(capture(module, (torch.tensor([[1, 2, 3]]),)), "sin", again)
        assert region.shared == {"ids", "tanh", "tanh_1"}
        assert [n.name for n in region.roots] == ["ids"]

    def test_does_not_tear_apart_what_depends_on_each_other(self) -> None:
        # The new side reads the first exponential, the old one computes it again from the same value.
        program = captured(lambda x: torch.exp(x) + torch.sin(torch.exp(x)))
        first, second = (n.name for n in program.graph.nodes if n.target is aten.exp.default)
        region = region_of(program, second, lambda p: p.node(first))
        assert [n.name for n in region.roots] == ["linear"]
        assert region.shared == {first}

    def test_a_sum_of_two_values_is_free_and_a_shift_by_a_number_is_not(self) -> None:
        program = captured(lambda x: torch.sin(torch.relu(x) + torch.cos(x)) + torch.tan(torch.relu(x) + 1.0))
        both, shifted = (str(program.node(name).args[0]) for name in ("sin", "tan"))
        sine = region_of(program, "sin", lambda p: added(p, aten.sin.default, both))
        assert [n.name for n in sine.roots] == [both]
        tangent = region_of(program, "tan", lambda p: added(p, aten.tan.default, shifted))
        assert [n.name for n in tangent.roots] == ["linear"]

    def test_what_is_made_of_integers_keeps_its_values(self) -> None:
        class Positions(nn.Module):
            def forward(self, x: Tensor, ids: Tensor) -> Tensor:
                return x * torch.cos(ids * 0.1)

        program = capture(Positions().eval(), (torch.zeros(2, 3), torch.arange(6).reshape(2, 3)))
        region = region_of(program, "mul_1", lambda p: added(p, aten.mul.Tensor, "x", "cos"))
        assert [n.name for n in region.roots] == ["cos", "x"]
        assert {n.name for n in region.free} == {"x"}

    def test_decisions_on_features_are_computed(self) -> None:
        program = captured(lambda x: torch.where(x > 0, x, 0.5 * x))
        where = next(n.name for n in program.graph.nodes if n.target is aten.where.self)
        region = region_of(program, where, lambda p: added(p, aten.relu.default, "gt"))
        assert [n.name for n in region.roots] == ["linear"]


def hidden(x: Tensor) -> Tensor:
    """Always zero: whatever is below the second ReLU cannot be seen outside."""
    return torch.relu(-torch.relu(torch.sin(x)))


def test_a_wrong_rewrite_behind_a_relu_is_caught_at_its_site() -> None:
    record = judged(captured(hidden), substitute(aten.sin.default, lambda e, n: e.call(aten.cos.default, n.args[0])))
    assert record.outcome == "reverted"
    assert record.verdict is not None
    assert {f.gate for f in record.verdict.findings} == {"site"}
    assert {f.where for f in record.verdict.findings} == {"sin"}
    assert "site gate: sin: twin" in record.reason


def test_a_right_rewrite_behind_a_relu_is_kept() -> None:
    def build(edit: Edit, node: fx.Node) -> fx.Node:
        return edit.call(aten.neg.default, edit.call(aten.sin.default, edit.call(aten.neg.default, node.args[0])))

    record = judged(captured(hidden), substitute(aten.sin.default, build))
    assert record.outcome == "kept", record.reason


class Stepwise(RewritePass[fx.Node]):
    """sin -> cos in two claims, the second of which replaces what the first one made."""

    exactness: ClassVar[Exactness] = Exactness.EXACT
    anchors: ClassVar[tuple[Any, ...]] = (aten.sin.default,)

    def check(self, site: Site) -> fx.Node:
        return site.node

    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        first = edit.call(aten.sin.default, plan.args[0])
        edit.replace(plan, first)
        edit.replace(first, edit.call(aten.cos.default, plan.args[0]))
        return "in two steps"


def test_claims_that_follow_each_other_are_checked_from_end_to_end() -> None:
    record = judged(captured(hidden), Stepwise())
    assert record.outcome == "reverted"
    assert record.reason.startswith("site gate: sin")


def test_a_rewrite_that_does_not_run_is_a_finding() -> None:
    def build(edit: Edit, node: fx.Node) -> fx.Node:
        # Legal while sizes are symbols, but it selects the captured number of elements.
        flat = edit.call(aten.reshape.default, edit.call(aten.sin.default, node.args[0]), [-1])
        shown = edit.call(aten.index_select.default, flat, 0, edit.call(aten.arange.default, 4 * 6 * 8))
        sizes = [edit.call(aten.sym_size.int, node.args[0], axis) for axis in (0, 1)]
        whole = edit.call(aten.cat.default, [shown, edit.call(aten.slice.Tensor, flat, 0, 4 * 6 * 8, 2**62)])
        return edit.call(aten.reshape.default, whole, [*sizes, 8])

    record = judged(captured(hidden), substitute(aten.sin.default, build))
    assert record.outcome == "reverted"
    assert record.verdict is not None
    assert any(f.gate == "site" and "does not run" in f.message for f in record.verdict.findings)


def test_masks_and_ids_at_the_boundary_do_not_stop_the_check() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(7, 8)

        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
            x = self.table(ids)
            return functional.scaled_dot_product_attention(x, x, x, attn_mask=mask.bool()[:, None, :])

    def by_hand(edit: Edit, node: fx.Node) -> fx.Node:
        q, k, v, mask = node.args
        scores = edit.call(
            aten.mul.Tensor, edit.call(aten.matmul.default, q, edit.call(aten.transpose.int, k, 1, 2)), 8**-0.5
        )
        shown = edit.call(aten.masked_fill.Scalar, scores, edit.call(aten.logical_not.default, mask), float("-inf"))
        return edit.call(aten.matmul.default, edit.call(aten.softmax.int, shown, -1), v)

    def unmasked(edit: Edit, node: fx.Node) -> fx.Node:
        return edit.call(aten.scaled_dot_product_attention.default, *node.args[:3])

    module = Attention()
    randomise(module, seed=0)
    ids, mask = torch.randint(0, 7, (4, 6)), torch.ones(4, 6, dtype=torch.int64)
    axes = {0: "batch", 1: "sequence"}
    program = capture(module.eval(), (ids, mask), dynamic={"ids": axes, "mask": axes})
    right = judged(program, substitute(aten.scaled_dot_product_attention.default, by_hand))
    assert right.outcome == "kept", right.reason
    assert right.verdict is not None and not [n for n in right.verdict.notes if "not checked" in n]
    wrong = judged(program, substitute(aten.scaled_dot_product_attention.default, unmasked))
    assert wrong.outcome == "reverted"
    assert wrong.verdict is not None and "site" in {f.gate for f in wrong.verdict.findings}


def test_a_site_after_rounded_folds_is_compared_with_its_own_twin() -> None:
    """Two passes in a row: the second one's site holds a weight that the first one rounded."""

    def scaled(factor: float) -> RewritePass:
        def build(edit: Edit, node: fx.Node) -> fx.Node:
            weight = node.args[1]
            assert isinstance(weight, fx.Node)
            stored = edit.parameter("w", edit.constant(weight) * factor, like=weight)
            new = edit.call(aten.linear.default, node.args[0], stored)
            rest = [] if len(node.args) < 3 else [node.args[2]]
            unscaled = edit.call(aten.mul.Tensor, new, 1 / factor)
            return edit.call(aten.add.Tensor, unscaled, *rest) if rest else unscaled

        return substitute(aten.linear.default, build)

    def again(edit: Edit, node: fx.Node) -> fx.Node:
        return edit.call(aten.mul.Tensor, node.args[0], node.args[1])

    passes = [scaled(3.0), substitute(aten.mul.Tensor, again)]
    records: tuple[PassRecord, ...] = run_passes(captured(torch.sin), passes, [VerifyPasses()]).records
    assert [r.reason for r in records] == ["", ""]
