from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from flowopt.errors import InternalError
from flowopt.pipeline.runner import run_passes
from flowopt.program.capture import capture
from flowopt.report.verdict import Outcome
from flowopt.rewrite import Edit, Exactness, RewritePass
from flowopt.verification.verify_passes import VerifyPasses
from flowopt.workflows.pipelines import Pipeline
from tests.program.models import Counter
from tests.rewrite.passes import DropDoubleRelu, SplitLinear
from tests.verification.substitute import aten, captured, judged, substitute
from tests.zoo.models import randomise


def twice(x: Tensor) -> Tensor:
    return torch.relu(torch.relu(x))


def minus_minus(edit: Edit, node: fx.Node) -> fx.Node:
    """relu(x) = -(-relu(x)): the same bits, but for the sign of zero."""
    return edit.call(aten.neg.default, edit.call(aten.neg.default, edit.call(aten.relu.default, node.args[0])))


def plus_zero(edit: Edit, node: fx.Node) -> fx.Node:
    """sin(x) = sin(x) + 0: the same bits, but for the sign of zero."""
    return edit.call(aten.add.Tensor, edit.call(aten.sin.default, node.args[0]), 0.0)


class TestVerdict:
    def test_of_a_kept_pass_has_figures_for_every_case(self) -> None:
        (record,) = run_passes(captured(twice), [DropDoubleRelu()], [VerifyPasses(seed=3)]).records
        verdict = record.verdict
        assert verdict is not None and verdict.outcome is Outcome.EQUIVALENT and verdict.seed == 3
        assert [label.split("[")[0] for label in verdict.cases] == ["traced", "smallest", "prime", "special"]
        assert len(verdict.figures) == 4
        assert all(f.ratio <= 1 and f.twin_error is not None and f.twin_error <= 1e-9 for f in verdict.figures)
        assert 0 < verdict.power < 1e-5
        assert verdict.reason == ""

    def test_of_a_reverted_pass_names_gate_output_and_case(self) -> None:
        record = judged(captured(torch.sin), substitute(aten.sin.default, lambda e, n: n.args[0]))
        assert record.outcome == "reverted"
        assert record.verdict is not None and record.verdict.outcome is Outcome.DIFFERENT
        assert record.reason.startswith("twin gate: output: in float64 it differs by")
        assert record.reason.endswith("(case traced[batch=4,sequence=6])")

    def test_counts_what_is_out_of_scope(self) -> None:
        record = judged(captured(torch.sin), substitute(aten.sin.default, plus_zero))
        assert record.verdict is not None
        assert {f.case.split("[")[0]: f.ignored > 0 for f in record.verdict.figures} == {
            "traced": False,
            "smallest": False,
            "prime": False,
            "special": True,
        }


class TestBitwise:
    def test_a_pass_that_keeps_every_bit_is_kept(self) -> None:
        def same(edit: Edit, node: fx.Node) -> fx.Node:
            return edit.call(aten.reciprocal.default, node.args[0])

        program = captured(lambda x: torch.reciprocal(x))
        assert judged(program, substitute(aten.reciprocal.default, same, Exactness.BITWISE)).outcome == "kept"

    def test_a_pass_that_changes_a_bit_is_not(self) -> None:
        def reassociated(edit: Edit, node: fx.Node) -> fx.Node:
            return edit.call(aten.mul.Tensor, edit.call(aten.div.Tensor, node.args[0], 3.0), 2.0)

        program = captured(lambda x: x * (2 / 3))
        assert judged(program, substitute(aten.mul.Tensor, reassociated)).outcome == "kept"
        record = judged(program, substitute(aten.mul.Tensor, reassociated, Exactness.BITWISE))
        assert record.outcome == "reverted"
        assert "bits" in record.reason

    def test_is_measured_against_the_program_before_it(self) -> None:
        """An exact pass before it has moved bits already."""

        def same(edit: Edit, node: fx.Node) -> fx.Node:
            return edit.call(aten.sin.default, node.args[0])

        passes = [SplitLinear(), substitute(aten.sin.default, same, Exactness.BITWISE)]
        records = run_passes(captured(torch.sin), passes, [VerifyPasses()]).records
        assert [(r.outcome, r.reason) for r in records] == [("kept", ""), ("kept", "")]


class TestTwin:
    def test_a_pass_that_stores_float32_algebra_is_caught(self) -> None:
        """Weight algebra in float32 loses digits that the float64 twin keeps."""

        def careless(edit: Edit, node: fx.Node) -> fx.Node:
            weight = node.args[1]
            assert isinstance(weight, fx.Node)
            folded = (edit.constant(weight).float() * 3.0 / 3.0).double()
            stored = edit.parameter("folded", folded * (1 + 3e-8), like=weight)
            return edit.call(aten.linear.default, node.args[0], stored, *node.args[2:])

        assert judged(captured(torch.sin), substitute(aten.linear.default, careless)).outcome == "reverted"

    def test_a_pass_that_builds_something_else_on_the_twin_is_caught(self) -> None:
        def wavering(edit: Edit, node: fx.Node) -> fx.Node:
            new = edit.call(aten.sin.default, node.args[0])
            return edit.call(aten.mul.Tensor, new, 1.0) if not edit.program.raised else new

        record = judged(captured(torch.sin), substitute(aten.sin.default, wavering))
        assert record.outcome == "reverted"
        assert record.reason.startswith("replay gate")

    def test_other_keywords_on_the_twin_are_caught(self) -> None:
        def wavering(edit: Edit, node: fx.Node) -> fx.Node:
            return edit.call(aten.add.Tensor, *node.args, alpha=2 if edit.program.raised else 1)

        record = judged(captured(lambda x: x + torch.sin(x)), substitute(aten.add.Tensor, wavering))
        assert record.reason.startswith("replay gate")

    def test_the_pass_after_a_reverted_one_has_the_twin_before_it(self) -> None:
        wrong = substitute(aten.sin.default, lambda e, n: e.call(aten.cos.default, n.args[0]))
        right = substitute(aten.sin.default, plus_zero)
        records = run_passes(captured(torch.sin), [wrong, right], [VerifyPasses()]).records
        assert [r.outcome for r in records] == ["reverted", "kept"]


class TestInputs:
    def test_nothing_is_computed_when_no_pass_fires(self) -> None:
        seen: list[str] = []
        instrument = VerifyPasses(on_case=seen.append)
        run_passes(captured(torch.sin), [DropDoubleRelu()], [instrument])
        assert seen == []
        assert len(instrument.evidence.cases) == 4 and len(seen) == 4

    def test_evidence_needs_a_program(self) -> None:
        with pytest.raises(InternalError, match="has seen no program"):
            VerifyPasses().evidence.cases  # noqa: B018  # the property raises

    def test_a_model_of_integers_gets_a_fifth_case(self) -> None:
        class Text(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.table, self.head = nn.Embedding(9, 8), nn.Linear(8, 8)

            def forward(self, ids: Tensor) -> Tensor:
                return torch.relu(torch.relu(self.head(self.table(ids))))

        module = Text()
        randomise(module, seed=0)
        program = capture(module.eval(), (torch.zeros(4, 6, dtype=torch.int64),), dynamic={"ids": {0: "batch"}})
        record = judged(program, DropDoubleRelu())
        assert record.outcome == "kept", record.reason
        assert record.verdict is not None and record.verdict.cases[-1].startswith("injected")

        def safe(edit: Edit, node: fx.Node) -> fx.Node:
            return edit.call(aten.relu.default, edit.call(aten.nan_to_num.default, node.args[0]))

        caught = judged(program, substitute(aten.relu.default, safe))
        assert caught.outcome == "reverted" and "swallowed" in caught.reason

    def test_a_case_whose_node_was_rewritten_is_noted(self) -> None:
        module = nn.Sequential(nn.Embedding(9, 8), nn.ReLU())
        randomise(module, seed=0)
        program = capture(module.eval(), (torch.zeros(4, 6, dtype=torch.int64),))

        def by_rows(edit: Edit, node: fx.Node) -> fx.Node:
            return edit.call(aten.index.Tensor, node.args[0], [node.args[1]])

        record = judged(program, substitute(aten.embedding.default, by_rows))
        assert record.outcome == "kept", record.reason
        assert record.verdict is not None
        assert [n for n in record.verdict.notes if n.startswith("injected")]

    def test_a_wrong_pass_on_state_is_caught(self) -> None:
        """The cache is constant as it is stored: a pass that reads one row of it is right there, and only there."""
        program = capture(Counter().eval(), (torch.ones(1, 3),))

        def one_row(edit: Edit, node: fx.Node) -> fx.Node:
            first = edit.call(aten.slice.Tensor, node.args[0], 0, 3, 4)
            others = edit.call(aten.slice.Tensor, node.args[0], 0, 0, 1)
            total = edit.call(aten.add.Tensor, edit.call(aten.mul.Tensor, first, 3), others)
            return edit.call(aten.squeeze.dim, total, 0)

        record = judged(program, substitute(aten.sum.dim_IntList, one_row))
        assert record.outcome == "reverted"

    def test_a_model_that_draws_random_numbers_cannot_be_judged(self) -> None:
        program = captured(lambda x: torch.relu(torch.relu(x)) + torch.rand_like(x))
        record = judged(program, DropDoubleRelu())
        assert record.outcome == "reverted"
        assert record.verdict is not None and record.verdict.outcome is Outcome.INCONCLUSIVE
        assert "draws random numbers" in record.reason

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
    def test_other_precisions_are_judged_by_their_own_roundoff(self, dtype: torch.dtype) -> None:
        module: Any = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.ReLU(), nn.Linear(16, 5))
        randomise(module, seed=0)
        x = torch.randn(4, 8).to(dtype)
        program = capture(module.to(dtype).eval(), (x,), dynamic={"input": {0: "batch"}})
        passes: list[RewritePass] = [DropDoubleRelu(), SplitLinear()]
        assert [r.reason for r in run_passes(program, passes, [VerifyPasses()]).records] == ["", ""]

        def off(edit: Edit, node: fx.Node) -> fx.Node:
            return edit.call(aten.mul.Tensor, edit.call(aten.relu.default, node.args[0]), 1 + 1e-8)

        # Invisible in sixteen bits: the twin sees it.
        assert judged(program, substitute(aten.relu.default, off)).outcome == "reverted"


@pytest.mark.parametrize("seed", range(4))
def test_models_with_one_number_per_sample_are_not_accused(seed: int) -> None:
    module = nn.Sequential(nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 1))
    randomise(module, seed)
    program = capture(module.eval(), (torch.randn(6, 24),), dynamic={"input": {0: "batch"}})

    def regrouped(edit: Edit, node: fx.Node) -> fx.Node:
        x, weight, bias = node.args
        assert isinstance(weight, fx.Node)
        half = edit.constant(weight).shape[1] // 2
        total = None
        for columns in ((0, half), (half, 2 * half)):
            w = edit.parameter("half", edit.constant(weight)[:, slice(*columns)], like=weight)
            part = edit.call(aten.linear.default, edit.call(aten.slice.Tensor, x, 1, *columns), w)
            total = part if total is None else edit.call(aten.add.Tensor, total, part)
        return edit.call(aten.add.Tensor, total, bias)

    for number in range(4):
        record = judged(program, substitute(aten.linear.default, regrouped), seed=number)
        assert record.outcome == "kept", record.reason


def test_verification_can_be_switched_off() -> None:
    wrong = substitute(aten.sin.default, lambda e, n: e.call(aten.cos.default, n.args[0]))
    assert Pipeline([wrong]).run(captured(torch.sin), verify="off").records[-1].outcome == "kept"
    assert Pipeline([wrong]).run(captured(torch.sin), verify="each").records[-1].outcome == "reverted"


def test_a_bitwise_claim_about_the_sign_of_zero_is_checked() -> None:
    record = judged(captured(torch.relu), substitute(aten.relu.default, minus_minus, Exactness.BITWISE))
    assert record.outcome == "kept", record.reason
    record = judged(captured(torch.relu), substitute(aten.relu.default, negative_zero, Exactness.BITWISE))
    assert record.outcome == "reverted"


def negative_zero(edit: Edit, node: fx.Node) -> fx.Node:
    """relu(x) = -min(-x, 0), which gives -0 where relu gives 0."""
    return edit.call(
        aten.neg.default, edit.call(aten.clamp.default, edit.call(aten.neg.default, node.args[0]), None, 0)
    )


def test_a_rewrite_to_the_captured_sizes_is_caught_at_the_others() -> None:
    """Its own metadata must not turn every case into the captured one."""

    def build(edit: Edit, node: fx.Node) -> fx.Node:
        return edit.call(aten.reshape.default, edit.call(aten.sin.default, node.args[0]), [4, 6, 8])

    record = judged(captured(torch.sin), substitute(aten.sin.default, build))
    assert record.outcome == "reverted"
    assert "does not run" in record.reason or "no longer runs" in record.reason


def test_a_number_that_only_the_rewrite_names_is_tried() -> None:
    """sin, but for one number that no random input holds; at level full."""

    def build(edit: Edit, node: fx.Node) -> fx.Node:
        is_it = edit.call(aten.eq.Scalar, node.args[0], 37.25)
        return edit.call(aten.where.self, is_it, node.args[0], edit.call(aten.sin.default, node.args[0]))

    class Bare(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(x)

    program = capture(Bare().eval(), (torch.randn(4, 6),), dynamic={"x": {0: "batch"}}, dims={"batch": (1, 32)})
    (record,) = run_passes(program, [substitute(aten.sin.default, build)], [VerifyPasses(level="full")]).records
    assert record.outcome == "reverted"
    assert "named-new" in record.reason
