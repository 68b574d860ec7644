from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from flowopt.pipeline.runner import run_passes
from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.report.passes import PassRecord
from flowopt.report.verdict import Outcome, Verdict
from flowopt.rewrite import Domain, Edit
from flowopt.rewrite.domain import Inputs
from flowopt.verification.inputs.user_data import user_cases
from flowopt.verification.levels import LEVELS, Level
from flowopt.verification.verify_passes import VerifyPasses
from tests.verification.declared import on_domain
from tests.verification.substitute import Build, aten, captured, judged, substitute
from tests.zoo.models import randomise

WHERE = aten.where.ScalarSelf
AXES = {0: "batch", 1: "sequence"}


class Masked(nn.Module):
    """Attention whose rows give zeros where the mask hides all positions."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        hidden = (mask == 0)[:, None, :]
        scores = (self.query(x) @ self.key(x).transpose(1, 2)).masked_fill(hidden, float("-inf"))
        return torch.where(hidden.all(-1, keepdim=True), 0.0, torch.softmax(scores, -1)) @ x


@pytest.fixture(scope="module")
def masked() -> Program:
    module = Masked()
    randomise(module, seed=0)
    mask = torch.ones(4, 6, dtype=torch.int64)
    mask[1, 4:] = 0
    return capture(module.eval(), (torch.randn(4, 6, 8), mask), dynamic={"x": AXES, "mask": AXES})


def verdict_of(record: PassRecord) -> Verdict:
    assert record.verdict is not None
    return record.verdict


def required(edit: Edit, condition: fx.Node, value: fx.Node) -> fx.Node:
    """``value``, which fails where ``condition`` (of one element) does not hold: an index is out of range."""
    index = edit.call(
        aten.reshape.default, edit.call(aten.where.ScalarOther, condition, edit.call(aten.full.default, [], 0), 9), [1]
    )
    zero = edit.call(aten.index_select.default, edit.call(aten.full.default, [1], 0.0), 0, index)
    return edit.call(aten.add.Tensor, value, zero)


def silently(edit: Edit, node: fx.Node) -> fx.Node:
    """The softmax alone: NaN for a row that is hidden as a whole."""
    found = node.args[2]
    assert isinstance(found, fx.Node)
    return found


def checked(edit: Edit, node: fx.Node) -> fx.Node:
    """The softmax alone, if every row shows a position."""
    shown = edit.call(aten.any.dim, node.graph.find_nodes(op="placeholder", target="mask")[0], -1)
    return required(edit, edit.call(aten.all.default, shown), silently(edit, node))


def showing(inputs: Inputs, count: int) -> Inputs:
    mask = torch.zeros_like(inputs["mask"])
    mask[:, :count] = 1
    return {"mask": mask}


SHOWN = Domain(
    "every row of mask shows a position",
    lambda inputs: bool(inputs["mask"].any(-1).all()),
    lambda inputs: showing(inputs, 1),
    lambda inputs: showing(inputs, 0),
)


class TestOutside:
    @pytest.mark.parametrize("level", LEVELS)
    def test_a_rewrite_that_fails_there_is_kept(self, masked: Program, level: Level) -> None:
        verifier = VerifyPasses(level=level)
        (record,) = run_passes(masked, [on_domain(WHERE, checked, SHOWN)], [verifier]).records
        assert record.outcome == "kept", record.reason
        assert verdict_of(record).outcome is Outcome.EQUIVALENT

    def test_a_rewrite_that_gives_other_numbers_there_is_reverted(self, masked: Program) -> None:
        record = judged(masked, on_domain(WHERE, silently, SHOWN))
        assert record.outcome == "reverted"
        assert record.reason.startswith(
            "domain gate: output: outside the domain of declared (every row of mask shows a position) it neither "
            "fails nor agrees: specials: introduced"
        )
        assert "outside-of-declared[" in record.reason
        assert {f.gate for f in verdict_of(record).findings} == {"domain"}

    def test_the_level_s_own_cases_outside_are_asked_too(self, masked: Program) -> None:
        """The declared negative case is harmless, the battery's hidden row is not."""

        def negative(inputs: Inputs) -> Inputs:
            return {"mask": 2 * torch.ones_like(inputs["mask"])}

        def contains(inputs: Inputs) -> bool:
            return SHOWN.contains(inputs) and bool((inputs["mask"] < 2).all())

        rewrite_pass = on_domain(WHERE, silently, replace(SHOWN, contains=contains, outside=negative))
        assert judged(masked, rewrite_pass).outcome == "kept"
        (record,) = run_passes(masked, [rewrite_pass], [VerifyPasses(level="full")]).records
        assert record.outcome == "reverted"
        assert {f.case.split("[")[0] for f in verdict_of(record).findings} == {"masked-row"}

    def test_a_rewrite_that_is_exact_there_too_is_kept(self, masked: Program) -> None:
        def same(edit: Edit, node: fx.Node) -> fx.Node:
            return edit.call(WHERE, *node.args)

        record = judged(masked, on_domain(WHERE, same, SHOWN))
        assert record.outcome == "kept", record.reason


class TestDeclaration:
    def test_an_edge_outside_is_a_finding(self, masked: Program) -> None:
        record = judged(masked, on_domain(WHERE, checked, replace(SHOWN, edge=SHOWN.outside)))
        assert record.outcome == "reverted"
        assert "domain gate: declared: its edge is outside the domain of declared (every row" in record.reason

    def test_a_negative_case_inside_is_a_finding(self, masked: Program) -> None:
        record = judged(masked, on_domain(WHERE, checked, replace(SHOWN, outside=SHOWN.edge)))
        assert record.outcome == "reverted"
        assert "domain gate: declared: its negative case is inside the domain of declared (every row" in record.reason

    @pytest.mark.parametrize("made", [{"mask": torch.ones(4, 5, dtype=torch.int64)}, {"hat": torch.ones(1)}])
    def test_inputs_that_do_not_fit_the_model_are_a_finding(self, masked: Program, made: dict[str, Tensor]) -> None:
        record = judged(masked, on_domain(WHERE, checked, replace(SHOWN, edge=lambda inputs: made)))
        assert record.outcome == "reverted"
        assert "edge-of-declared does not fit the model" in record.reason

    def test_it_may_change_what_it_is_given(self, masked: Program) -> None:
        def emptied(inputs: Inputs) -> Inputs:
            inputs["mask"].zero_()
            return inputs

        rewrite_pass = on_domain(WHERE, checked, replace(SHOWN, outside=emptied))
        assert judged(masked, rewrite_pass).outcome == "kept"
        assert bool(masked.example["mask"].any())

    def test_an_edge_at_which_the_original_fails_is_a_finding(self) -> None:
        program = looking_up(lambda table, ids: table(ids))
        none = replace(BELOW, edge=BELOW.outside, contains=lambda inputs: bool((inputs["ids"] <= 7).all()))
        wider = replace(none, outside=lambda inputs: {"ids": inputs["ids"].clamp(8, 8)})
        record = judged(program, on_domain(aten.embedding.default, by_index, wider))
        assert record.outcome == "reverted"
        assert "the original does not run at the edge of the domain of declared" in record.reason


def looking_up(body: Callable[[nn.Embedding, Tensor], Tensor]) -> Program:
    """A table of seven rows."""

    class LookingUp(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(7, 8)

        def forward(self, ids: Tensor) -> Tensor:
            return body(self.table, ids)

    module = LookingUp()
    randomise(module, seed=0)
    ids = torch.randint(0, 7, (4, 6), generator=torch.Generator().manual_seed(0))
    ids[0, 0] = 6
    return capture(module.eval(), (ids,), dynamic={"ids": AXES})


BELOW = Domain(
    "ids < 7",
    lambda inputs: bool((inputs["ids"] < 7).all()),
    lambda inputs: {"ids": inputs["ids"].clamp(6, 6)},
    lambda inputs: {"ids": inputs["ids"].clamp(7, 7)},
)


def by_index(edit: Edit, node: fx.Node) -> fx.Node:
    return edit.call(aten.index.Tensor, node.args[0], [node.args[1]])


class TestIds:
    @pytest.mark.parametrize("level", LEVELS)
    def test_a_dropped_clamp_of_ids_is_kept_because_the_table_refuses_others(self, level: Level) -> None:
        program = looking_up(lambda table, ids: table(ids.clamp(0, 6)))
        rewrite_pass = on_domain(aten.clamp.default, lambda e, n: n.args[0], BELOW)
        (record,) = run_passes(program, [rewrite_pass], [VerifyPasses(level=level)]).records
        assert record.outcome == "kept", record.reason

    def test_an_added_clamp_is_reverted_because_the_original_fails_there(self) -> None:
        def clamped(edit: Edit, node: fx.Node) -> fx.Node:
            return edit.call(aten.embedding.default, node.args[0], edit.call(aten.clamp.default, node.args[1], 0, 6))

        record = judged(looking_up(lambda table, ids: table(ids)), on_domain(aten.embedding.default, clamped, BELOW))
        assert record.outcome == "reverted"
        assert "it gives numbers where the original gives none: outside-of-declared[" in record.reason

    def test_where_both_fail_they_agree(self) -> None:
        program = looking_up(lambda table, ids: table(ids))
        record = judged(program, on_domain(aten.embedding.default, by_index, BELOW))
        assert record.outcome == "kept", record.reason

    def test_cases_that_replace_inner_values_are_left_out_and_named(self) -> None:
        program = looking_up(lambda table, ids: torch.sin(table(ids.clamp(0, 6))))
        record = judged(program, on_domain(aten.clamp.default, lambda e, n: n.args[0], BELOW))
        assert record.outcome == "kept", record.reason
        assert [n for n in verdict_of(record).notes if n.startswith("injected[")]


def bounded(limit: float, wrong: Build) -> tuple[Any, Domain]:
    """A domain of features: none is above the limit."""
    domain = Domain(
        f"x <= {limit:g}",
        lambda inputs: bool((inputs["x"] <= limit).all()),
        lambda inputs: {"x": inputs["x"].clamp(limit, limit)},
        lambda inputs: {"x": inputs["x"].clamp(limit + 1, limit + 1)},
    )
    return on_domain(aten.linear.default, wrong, domain), domain


class TestInside:
    def test_a_wrong_edge_is_caught_at_the_edge(self) -> None:
        def wrong_at_the_edge(edit: Edit, node: fx.Node) -> fx.Node:
            right = edit.call(aten.linear.default, *node.args)
            at_edge = edit.call(aten.eq.Scalar, node.args[0], 50.0)
            return edit.call(aten.add.Tensor, right, edit.call(aten.mul.Tensor, at_edge, 1e-3))

        record = judged(captured(torch.sin), bounded(50.0, wrong_at_the_edge)[0])
        assert record.outcome == "reverted"
        at_cases = {f.case.split("[")[0] for f in verdict_of(record).findings if f.gate != "site"}
        assert at_cases == {"edge-of-declared"}
        assert "site" in {f.gate for f in verdict_of(record).findings}

    def test_a_wrong_interior_is_caught(self) -> None:
        def off(edit: Edit, node: fx.Node) -> fx.Node:
            return edit.call(aten.mul.Tensor, edit.call(aten.linear.default, *node.args), 1 + 1e-6)

        assert judged(captured(torch.sin), bounded(50.0, off)[0]).outcome == "reverted"

    def test_without_a_case_inside_nothing_is_decided(self) -> None:
        """The edge is inside, but no number in it is finite."""
        domain = Domain(
            "x is NaN",
            lambda inputs: bool(inputs["x"].isnan().all()),
            lambda inputs: {"x": inputs["x"] * float("nan")},
            lambda inputs: {"x": inputs["x"]},
        )

        def same(edit: Edit, node: fx.Node) -> fx.Node:
            return edit.call(aten.sin.default, node.args[0])

        record = judged(captured(torch.sin), on_domain(aten.sin.default, same, domain))
        assert (record.outcome, verdict_of(record).outcome) == ("reverted", Outcome.INCONCLUSIVE)
        assert record.reason.startswith("nothing could be decided")


class Rooting(nn.Module):
    """|x| of the input, then a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(x.abs())
        return result


NOT_NEGATIVE = Domain(
    "x >= 0",
    lambda inputs: bool((inputs["x"] >= 0).all()),
    lambda inputs: {"x": torch.zeros_like(inputs["x"])},
    lambda inputs: {"x": -torch.ones_like(inputs["x"])},
)


@pytest.fixture(scope="module")
def rooting() -> Program:
    module = Rooting()
    randomise(module, seed=0)
    return capture(module.eval(), (torch.rand(4, 6, 8),), dynamic={"x": AXES})


def identity_if_positive(edit: Edit, node: fx.Node) -> fx.Node:
    x = node.args[0]
    assert isinstance(x, fx.Node)
    return required(edit, edit.call(aten.all.default, edit.call(aten.ge.Scalar, x, 0)), x)


@pytest.mark.parametrize("level", LEVELS)
def test_sites_hold_what_the_model_makes_of_inputs_inside(rooting: Program, level: Level) -> None:
    """Any tensor at the site would be negative somewhere, and so is the case ``smallest`` with stressed weights."""
    rewrite_pass = on_domain(aten.abs.default, identity_if_positive, NOT_NEGATIVE)
    (record,) = run_passes(rooting, [rewrite_pass], [VerifyPasses(level=level)]).records
    assert record.outcome == "kept", record.reason
    assert not [n for n in verdict_of(record).notes if "not checked alone" in n]


def test_a_domain_may_be_one_of_sizes() -> None:
    program = captured(lambda x: x + torch.arange(x.shape[1], dtype=torch.float32)[:, None])

    def from_six(edit: Edit, node: fx.Node) -> fx.Node:
        """The first of six positions: an index is out of range where there are more."""
        six = edit.call(aten.arange.default, 6, dtype=torch.float32)
        length = edit.call(aten.sym_size.int, node.graph.find_nodes(op="placeholder")[0], 1)
        return edit.call(aten.index_select.default, six, 0, edit.call(aten.arange.default, length))

    domain = Domain(
        "at most 6 positions",
        lambda inputs: inputs["x"].shape[1] <= 6,
        lambda inputs: {"x": inputs["x"][:, :1].repeat(1, 6, 1)},
        lambda inputs: {"x": inputs["x"][:, :1].repeat(1, 7, 1)},
    )
    anchor = next(n.target for n in program.graph.nodes if "arange" in str(n.target))
    record = judged(program, on_domain(anchor, from_six, domain))
    assert record.outcome == "kept", record.reason
    longer = replace(domain, edge=domain.outside, contains=lambda inputs: inputs["x"].shape[1] <= 7)
    longer = replace(longer, outside=lambda inputs: {"x": inputs["x"][:, :1].repeat(1, 8, 1)})
    record = judged(program, on_domain(anchor, from_six, longer))
    assert record.outcome == "reverted"
    assert "edge-of-declared[batch=4,sequence=7]" in {f.case for f in verdict_of(record).findings}


class TestAfterIt:
    """A kept pass may fail outside its domain, and so may everything that follows."""

    @staticmethod
    def same(edit: Edit, node: fx.Node) -> fx.Node:
        return edit.call(aten.linear.default, *node.args)

    @staticmethod
    def off(edit: Edit, node: fx.Node) -> fx.Node:
        return edit.call(aten.mul.Tensor, edit.call(aten.linear.default, *node.args), 1 + 1e-6)

    @pytest.mark.parametrize("level", LEVELS)
    def test_right_passes_are_kept_and_wrong_ones_reverted(self, rooting: Program, level: Level) -> None:
        passes = [on_domain(aten.abs.default, identity_if_positive, NOT_NEGATIVE)]
        passes += [substitute(aten.linear.default, self.off), substitute(aten.linear.default, self.same)]
        verifier = VerifyPasses(level=level)
        records = run_passes(rooting, passes, [verifier]).records
        assert [r.outcome for r in records] == ["kept", "reverted", "kept"], [r.reason for r in records]

    def test_cases_where_it_fails_are_left_out_and_named(self, rooting: Program) -> None:
        rewrite_pass = on_domain(aten.abs.default, identity_if_positive, NOT_NEGATIVE)
        positive, negative = torch.rand(2, 3, 8), -torch.rand(2, 3, 8)
        data = [replace(next(user_cases(rooting, {"x": x})), name=n) for n, x in (("up", positive), ("down", negative))]
        verifier = VerifyPasses(data=data)
        run_passes(rooting, [rewrite_pass], [verifier])
        assert [e.case.name for e in verifier.evidence.cases] == ["up", "edge-of-declared"]
        assert [n for n in verifier.evidence.skipped if n.startswith("down[") and "where it fails" in n]
        # The next run asks all of them again.
        verifier.start(rooting)
        assert {"traced", "prime", "up", "down"} <= {e.case.name for e in verifier.evidence.cases}


def test_cases_that_replace_inner_values_say_nothing_of_what_follows_either() -> None:
    """Inside its domain the model makes no NaN, and what clears one away may go; a case that puts one in still runs."""
    program = looking_up(lambda table, ids: torch.sin(table(ids.clamp(0, 6)).nan_to_num(0.0)))
    passes = [
        on_domain(aten.nan_to_num.default, lambda e, n: n.args[0], AT_LEAST_ZERO),
        substitute(aten.sin.default, lambda e, n: e.call(aten.sin.default, n.args[0])),
    ]
    records = run_passes(program, passes, [VerifyPasses()]).records
    assert [r.outcome for r in records] == ["kept", "kept"], [r.reason for r in records]
    assert all([n for n in verdict_of(r).notes if n.startswith("injected[")] for r in records)


AT_LEAST_ZERO = Domain(
    "ids >= 0",
    lambda inputs: bool((inputs["ids"] >= 0).all()),
    lambda inputs: {"ids": inputs["ids"].clamp(0, 0)},
    lambda inputs: {"ids": inputs["ids"].clamp(-1, -1)},
)
