from typing import Any

import pytest
import torch
from torch import fx, nn

from flowopt.errors import InternalError
from flowopt.ir.text import operator_census
from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.rewrite import Edit, RewritePass, Site
from flowopt.rewrite.driver import apply, replay
from tests.rewrite.passes import (
    DropDoubleNegation,
    DropDoubleRelu,
    Inner,
    NamedSites,
    RefuseFirst,
    SplitLinear,
    chain,
)


@pytest.mark.parametrize("rewrite_pass", [DropDoubleRelu(), DropDoubleNegation(), SplitLinear(), RefuseFirst()])
def test_every_anchor_is_applied_or_refused(rewrite_pass: RewritePass[Any]) -> None:
    program = chain()
    anchors = [n.name for n in rewrite_pass.sites(program)]
    done = apply(rewrite_pass, program)
    sites = [a.site for a in done.applied] + [r.site for r in done.refused]
    assert sorted(sites) == sorted(anchors)
    assert len(done.steps) == len(done.applied)


def test_applied_and_refused_name_module_line_and_reason() -> None:
    done = apply(DropDoubleRelu(), chain())
    (applied,), (refused,) = done.applied, done.refused
    assert (applied.site, applied.summary) == ("relu_1", "dropped")
    assert applied.source.startswith("rewrite/passes.py:")
    assert (refused.site, refused.code, refused.node) == ("relu", "not-linear-producer", "relu")
    assert refused.message == "no relu comes before it"
    assert refused.source == applied.source


def test_a_site_that_another_rewrite_removed_is_refused_as_such() -> None:
    program = chain()
    done = apply(DropDoubleNegation(), program)
    assert [a.site for a in done.applied] == ["neg"]
    (refused,) = done.refused
    assert (refused.site, refused.code) == ("neg_1", "already-rewritten")
    assert refused.source.startswith("rewrite/passes.py:")
    assert operator_census(program.graph)["aten.neg"] == 0


def test_a_refused_site_is_visited_again_after_another_fired() -> None:
    program = chain()
    done = apply(RefuseFirst(), program)
    assert [a.site for a in done.applied] == ["relu", "relu_1"]
    assert not done.refused
    # In the order in which they happened, which is the order that a replay needs.
    assert [s.anchor for s in done.steps] == ["relu_1", "relu"]


def test_new_anchors_of_the_same_pass_are_left_for_its_next_run() -> None:
    program = chain()
    assert len(apply(SplitLinear(), program).applied) == 2
    assert operator_census(program.graph)["aten.linear"] == 4


def test_modules_are_named_by_their_path() -> None:
    program = capture(nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.ReLU(), nn.ReLU())).eval(), (torch.ones(1, 3),))
    assert [a.module for a in apply(DropDoubleRelu(), program).applied] == ["1.1"]


class TestFailures:
    def test_of_check_keep_their_type_and_gain_a_note(self) -> None:
        class FailingCheck(DropDoubleRelu):
            def check(self, site: Site) -> Inner:
                raise ZeroDivisionError("in check")

        with pytest.raises(ZeroDivisionError, match="in check") as caught:
            apply(FailingCheck(), chain())
        (note,) = caught.value.__notes__
        assert "failing-check checked %relu" in note

    def test_of_rewrite_keep_their_type_and_gain_a_note(self) -> None:
        class FailingRewrite(DropDoubleRelu):
            level: int = 1

            def rewrite(self, edit: Edit, plan: Inner) -> str:
                raise KeyError("in rewrite")

        with pytest.raises(KeyError, match="in rewrite") as caught:
            apply(FailingRewrite(level=3), chain())
        (note,) = caught.value.__notes__
        assert "failing-rewrite:level=3 rewrote %relu_1" in note and "Inner(value=relu)" in note

    def test_of_sites_keep_their_type_and_gain_a_note(self) -> None:
        with pytest.raises(KeyError, match="nowhere") as caught:
            apply(NamedSites(), chain())
        assert caught.value.__notes__ == ["while named-sites looked for its sites"]

    def test_an_unknown_refusal_code_is_an_error(self) -> None:
        class Mumbling(DropDoubleRelu):
            def check(self, site: Site) -> Inner:
                site.refuse("because", "no reason")

        with pytest.raises(InternalError, match="'because' is in no vocabulary"):
            apply(Mumbling(), chain())

    def test_a_pass_may_bring_its_own_codes(self) -> None:
        class Speaking(DropDoubleRelu):
            codes = {"because": "a reason of this pass"}

            def check(self, site: Site) -> Inner:
                site.refuse("because", "the reason")

        assert {r.code for r in apply(Speaking(), chain()).refused} == {"because"}

    def test_a_rewrite_that_replaces_nothing_is_an_error(self) -> None:
        class Idle(DropDoubleRelu):
            def rewrite(self, edit: Edit, plan: Inner) -> str:
                return "nothing"

        with pytest.raises(InternalError, match="idle reports a rewrite of relu_1 but replaced nothing"):
            apply(Idle(), chain())


class TestReplay:
    def on_twin(self, rewrite_pass: RewritePass[Any]) -> tuple[Program, Program]:
        program = chain()
        twin = program.raised_copy()
        replay(rewrite_pass, apply(rewrite_pass, program).steps, twin)
        return program, twin

    @pytest.mark.parametrize("rewrite_pass", [DropDoubleRelu(), DropDoubleNegation(), SplitLinear(), RefuseFirst()])
    def test_builds_the_same_graph(self, rewrite_pass: RewritePass[Any]) -> None:
        program, twin = self.on_twin(rewrite_pass)
        assert [str(n) for n in program.graph.nodes] == [str(n) for n in twin.graph.nodes]

    def test_stores_float64(self) -> None:
        program, twin = self.on_twin(SplitLinear())
        assert program.tensors["first.weight.part"].dtype is torch.float32
        assert twin.tensors["first.weight.part"].dtype is torch.float64

    def test_refuses_a_copy_without_the_site(self) -> None:
        program, other = chain(), chain().raised_copy()
        steps = apply(DropDoubleRelu(), program).steps
        replay(DropDoubleRelu(), steps, other)
        with pytest.raises(InternalError, match="the copy has no site 'relu_1'"):
            replay(DropDoubleRelu(), steps, other)

    def test_refuses_a_pass_that_claims_something_else_there(self) -> None:
        class Wavering(DropDoubleRelu):
            def rewrite(self, edit: Edit, plan: Inner) -> str:
                x = plan.value.args[0]
                assert isinstance(x, fx.Node)
                edit.replace(edit.anchor, edit.call(aten_clamp, x, 0) if edit.program.raised else plan.value)
                return "wavering"

        aten_clamp = torch.ops.aten.clamp.default
        with pytest.raises(InternalError, match="rewritten differently on the copy"):
            self.on_twin(Wavering())
