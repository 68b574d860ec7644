"""Stressed weights show what level quick cannot see."""

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from flowopt.pipeline.runner import run_passes
from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.report.passes import PassRecord
from flowopt.report.verdict import Outcome, Verdict
from flowopt.rewrite import Edit, Exactness, RewritePass, Site
from flowopt.verification.levels import Level
from flowopt.verification.verify_passes import VerifyPasses
from tests.verification.substitute import Build, aten, captured, substitute
from tests.verification.test_substitutions import (
    one_pass_variance,
    softmax_shifted,
    softmax_unshifted,
    two_pass_variance,
)
from tests.zoo.models import randomise

AXES = {0: "batch", 1: "sequence"}


class Normed(nn.Module):
    """A body behind a layer norm: for ordinary gains no input makes its numbers large."""

    def __init__(self, body: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(self.body(self.norm(self.first(x))))
        return result


class Placed(nn.Module):
    """A body behind a tanh and a stored offset: for ordinary offsets its rows have no large mean."""

    def __init__(self, body: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)
        self.place = nn.Parameter(torch.zeros(8))
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(self.body(torch.tanh(self.first(x)) + self.place))
        return result


def normalized(x: Tensor) -> Tensor:
    return x * torch.rsqrt(torch.var(x, -1, correction=0, keepdim=True) + 1e-3)


def softplus_by_logarithm(edit: Edit, node: fx.Node) -> fx.Node:
    power = edit.call(aten.exp.default, node.args[0])
    return edit.call(aten.log.default, edit.call(aten.add.Tensor, power, 1.0))


def softplus_without_overflow(edit: Edit, node: fx.Node) -> fx.Node:
    """max(x, 0) + log1p(exp(-|x|))."""
    size = edit.call(aten.neg.default, edit.call(aten.abs.default, node.args[0]))
    rest = edit.call(aten.log1p.default, edit.call(aten.exp.default, size))
    return edit.call(aten.add.Tensor, edit.call(aten.relu.default, node.args[0]), rest)


def softmax(x: Tensor) -> Tensor:
    return torch.softmax(x, -1)


Family = tuple[Callable[[Callable[[Tensor], Tensor]], nn.Module], Callable[[Tensor], Tensor], Any, Build, Build]
FAMILIES: dict[str, Family] = {
    "softmax": (Normed, softmax, aten.softmax.int, softmax_unshifted, softmax_shifted),
    "softplus": (
        Normed,
        functional.softplus,
        aten.softplus.default,
        softplus_by_logarithm,
        softplus_without_overflow,
    ),
    "variance": (Placed, normalized, aten.var.correction, one_pass_variance, two_pass_variance),
}


def program_of(family: str, seed: int) -> Program:
    model, body, *_ = FAMILIES[family]
    module = model(body)
    randomise(module, seed)
    x = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(seed))
    dims: dict[str, tuple[int, int | None]] = {"batch": (1, 32), "sequence": (1, 32)}
    return capture(module.eval(), (x,), dynamic={"x": AXES}, dims=dims)


def judged_at(level: Level, program: Program, *passes: RewritePass, seed: int = 0) -> list[PassRecord]:
    return list(run_passes(program, passes, [VerifyPasses(seed=seed, level=level)]).records)


def verdict_of(record: PassRecord) -> Verdict:
    assert record.verdict is not None
    return record.verdict


class TestStressedWeights:
    @pytest.mark.usefixtures("few_cases")
    @pytest.mark.parametrize(
        ("family", "gate"), [("softmax", "specials"), ("softplus", "specials"), ("variance", "ratio")]
    )
    def test_show_what_no_input_of_the_model_shows(self, family: str, gate: str) -> None:
        _, _, anchor, wrong, _ = FAMILIES[family]
        program = program_of(family, seed=3)
        (quick,) = judged_at("quick", program, substitute(anchor, wrong))
        # Of the three, a site shows the variance alone: rows far from zero come out of the sum with a table.
        assert quick.outcome == ("reverted" if family == "variance" else "kept")
        (full,) = judged_at("full", program, substitute(anchor, wrong))
        assert full.outcome == "reverted"
        stressed = [f for f in verdict_of(full).findings if f.case.startswith("stressed x30 ")]
        assert {f.gate for f in stressed} == {gate}
        assert {f.case.split()[2].split("[")[0] for f in stressed} == {"traced", "smallest", "prime"}

    @pytest.mark.usefixtures("few_cases")
    @pytest.mark.parametrize("family", FAMILIES)
    def test_do_not_accuse_right_rewrites(self, family: str) -> None:
        _, _, anchor, _, right = FAMILIES[family]
        (record,) = judged_at("full", program_of(family, seed=3), substitute(anchor, right))
        assert record.outcome == "kept", record.reason
        assert {f.case.split()[0] for f in verdict_of(record).figures} >= {"stressed"}

    @pytest.mark.slow
    @pytest.mark.usefixtures("few_cases")
    @pytest.mark.parametrize("seed", range(20))
    @pytest.mark.parametrize("family", FAMILIES)
    def test_accuse_no_right_rewrite_for_any_seed(self, family: str, seed: int) -> None:
        _, _, anchor, _, right = FAMILIES[family]
        (record,) = judged_at("full", program_of(family, seed), substitute(anchor, right), seed=seed)
        assert record.outcome == "kept", record.reason

    @pytest.mark.usefixtures("few_cases")
    def test_follow_the_kept_passes(self) -> None:
        """The second pass folds into a weight that the first one stored."""
        passes = [Scaled(), Scaled()]
        records = judged_at("full", captured(torch.sin), *passes)
        assert [r.outcome for r in records] == ["kept", "kept"], [r.reason for r in records]
        assert all({"stressed"} <= {f.case.split()[0] for f in verdict_of(r).figures} for r in records)

    @pytest.mark.usefixtures("few_cases")
    def test_are_named_where_no_factor_leaves_finite_numbers(self) -> None:
        class Steep(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.height = nn.Parameter(torch.full((1, 8), 80.0))

            def forward(self, x: Tensor) -> Tensor:
                return torch.exp(self.height) * torch.sin(x)

        program = capture(Steep().eval(), (torch.randn(4, 8),))
        again = substitute(aten.sin.default, lambda e, n: e.call(aten.sin.default, n.args[0]))
        (record,) = judged_at("full", program, again)
        assert record.outcome == "kept", record.reason
        assert "stressed weights: not run, every factor leaves mostly infinities" in verdict_of(record).notes

    @pytest.mark.usefixtures("few_cases")
    def test_do_not_make_weak_evidence_strong(self) -> None:
        """Natural weights give no finite number, stressed ones do."""

        class Vanishing(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.place = nn.Parameter(torch.full((8,), -40.0))

            def forward(self, x: Tensor) -> Tensor:
                return torch.log(torch.tanh(x) + self.place)

        program = capture(Vanishing().eval(), (torch.randn(4, 8),))
        again = substitute(aten.tanh.default, lambda e, n: e.call(aten.tanh.default, n.args[0]))
        (record,) = judged_at("full", program, again)
        assert verdict_of(record).outcome is Outcome.INCONCLUSIVE
        assert any(f.regime.startswith("stressed ") and f.ignored == 0 for f in verdict_of(record).figures)


class Scaled(RewritePass[fx.Node]):
    """W x + b -> (2 W) x / 2 + b: exact, and the new weight is made from the old one."""

    exactness: ClassVar[Exactness] = Exactness.EXACT
    anchors: ClassVar[tuple[Any, ...]] = (aten.linear.default,)

    def check(self, site: Site) -> fx.Node:
        site.require(site.node.name == "linear" or len(site.node.args) == 2, "already-rewritten", "the first layer")
        return site.node

    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        x, weight, *bias = plan.args
        assert isinstance(weight, fx.Node)
        doubled = edit.parameter("doubled", edit.constant(weight) * 3, like=weight)
        new = edit.call(aten.div.Tensor, edit.call(aten.linear.default, x, doubled), 3)
        edit.replace(plan, edit.call(aten.add.Tensor, new, bias[0]) if bias else new)
        return "scaled"


class LooksAtWeights(RewritePass[fx.Node]):
    """Builds one thing for small weights and another for large ones: more than its plan says."""

    exactness: ClassVar[Exactness] = Exactness.EXACT
    anchors: ClassVar[tuple[Any, ...]] = (aten.linear.default,)

    def check(self, site: Site) -> fx.Node:
        site.require("rewritten_by" not in site.node.meta, "already-rewritten", "made by this pass")
        return site.node

    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        new = edit.call(aten.linear.default, *plan.args)
        weight = plan.args[1]
        assert isinstance(weight, fx.Node)
        if float(edit.constant(weight).abs().max()) > 5.0:
            new = edit.call(aten.neg.default, edit.call(aten.neg.default, new))
        edit.replace(plan, new)
        return "rewritten"


@pytest.mark.usefixtures("few_cases")
def test_a_rewrite_that_depends_on_more_than_its_plan_is_named_by_the_replay_gate() -> None:
    program = captured(torch.sin)
    assert judged_at("quick", program, LooksAtWeights())[0].outcome == "kept"
    (record,) = judged_at("full", program, LooksAtWeights())
    assert record.outcome == "reverted"
    (finding,) = verdict_of(record).findings
    assert (finding.gate, finding.where, finding.case) == ("replay", "looks-at-weights", "stressed x30 program")


class Gained(nn.Module):
    """A stored gain of ones, as many a norm has."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.last = nn.Linear(8, 8)
        self.gain = nn.Parameter(torch.full((8,), gain))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(torch.sin(x) * self.gain)
        return result


class DropOnes(RewritePass[fx.Node]):
    """x * 1 -> x for a stored 1."""

    exactness: ClassVar[Exactness] = Exactness.EXACT
    anchors: ClassVar[tuple[Any, ...]] = (aten.mul.Tensor,)

    def check(self, site: Site) -> fx.Node:
        gain = site.constant(site.node.args[1], "the gain")
        site.require(bool((gain == 1).all()), "not-constant", "the gain is not 1")
        (x, _) = site.node.args
        assert isinstance(x, fx.Node)
        return x

    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        edit.replace(edit.anchor, plan)
        return "dropped"


class AsNumber(DropOnes):
    """x * w -> x * c where every element of w is c; the plan holds c."""

    def check(self, site: Site) -> Any:
        gain = site.constant(site.node.args[1], "the gain")
        site.require(bool((gain == gain[0]).all()), "not-constant", "the gain is not one number")
        return float(gain[0])

    def rewrite(self, edit: Edit, plan: Any) -> str:
        edit.replace(edit.anchor, edit.call(aten.mul.Tensor, edit.anchor.args[0], plan))
        return "a number"


class TestDecisionsByStoredValues:
    """A right rewrite whose check looks at weights is right for those weights alone."""

    @pytest.fixture
    def program(self) -> Program:
        module = Gained(1.0)
        torch.manual_seed(0)
        nn.init.normal_(module.last.weight)
        return capture(module.eval(), (torch.randn(4, 8),), dynamic={"x": {0: "batch"}})

    @pytest.mark.usefixtures("few_cases")
    @pytest.mark.parametrize("rewrite_pass", [DropOnes(), AsNumber()])
    def test_are_not_held_against_it(self, program: Program, rewrite_pass: RewritePass) -> None:
        (record,) = judged_at("full", program, rewrite_pass)
        assert record.outcome == "kept", record.reason
        name = rewrite_pass.text()
        assert f"stressed weights: not run from {name} on, which decides by what is stored" in verdict_of(record).notes

    @pytest.mark.usefixtures("few_cases")
    def test_stop_the_stress_for_what_follows(self, program: Program) -> None:
        right = substitute(aten.sin.default, lambda e, n: e.call(aten.sin.default, n.args[0]))
        records = judged_at("full", program, DropOnes(), right)
        assert [r.outcome for r in records] == ["kept", "kept"], [r.reason for r in records]
        assert any("stressed weights: not run from drop-ones on" in note for note in verdict_of(records[1]).notes)

    @pytest.mark.usefixtures("few_cases")
    def test_do_not_stop_it_where_the_pass_was_reverted(self, program: Program) -> None:
        class DropHalves(DropOnes):
            def rewrite(self, edit: Edit, plan: fx.Node) -> str:
                edit.replace(edit.anchor, edit.call(aten.mul.Tensor, plan, 1.001))
                return "dropped"

        right = substitute(aten.sin.default, lambda e, n: e.call(aten.sin.default, n.args[0]))
        records = judged_at("full", program, DropHalves(), right)
        assert [r.outcome for r in records] == ["reverted", "kept"], [r.reason for r in records]
        assert not [note for note in verdict_of(records[1]).notes if "stressed weights" in note]
