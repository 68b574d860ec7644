from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from flowopt.errors import InternalError
from flowopt.ir.fingerprint import fingerprint
from flowopt.pipeline.instrument import PassRun
from flowopt.pipeline.runner import run_passes
from flowopt.program.capture import capture
from flowopt.program.program import Input, Program
from flowopt.report.verdict import Finding, Outcome, Verdict
from flowopt.rewrite import Edit, Site
from tests.rewrite.passes import DropDoubleNegation, DropDoubleRelu, Inner, SplitLinear, aten, chain


def own(program: Program) -> Program:
    """The same program with tensors of its own, which a test may spoil."""
    program.tensors = {name: tensor.clone() for name, tensor in program.tensors.items()}
    return program


class TestPromises:
    def test_a_pass_that_refuses_changes_nothing(self) -> None:
        class ChangingCheck(DropDoubleRelu):
            def check(self, site: Site) -> Inner:
                site.node.args = (site.program.node("linear"),)
                site.refuse("not-linear-producer", "no")

        with pytest.raises(InternalError, match="changing-check refused every site but changed the program"):
            run_passes(chain(), [ChangingCheck()])

    def test_a_pass_that_reports_rewrites_changed_something(self) -> None:
        class Idle(DropDoubleRelu):
            def rewrite(self, edit: Edit, plan: Inner) -> str:
                return "nothing"

        with pytest.raises(InternalError, match="idle reports a rewrite of relu_1 but replaced nothing"):
            run_passes(chain(), [Idle()])

    def test_a_replacement_by_itself_is_no_change(self) -> None:
        class ByItself(DropDoubleRelu):
            def rewrite(self, edit: Edit, plan: Inner) -> str:
                edit.replace(edit.anchor, edit.anchor)
                return "nothing"

        with pytest.raises(InternalError, match="by-itself reports 1 rewrites but changed nothing"):
            run_passes(chain(), [ByItself()])

    @pytest.mark.parametrize(
        ("name", "change", "message"),
        [
            ("edge", lambda p: setattr(p.node("linear_1"), "args", p.node("linear_1").args[:2]), "linear_1 read"),
            ("operator", lambda p: setattr(p.node("relu"), "target", aten.neg.default), "relu was aten.relu"),
            ("keyword", lambda p: setattr(p.node("neg"), "kwargs", {"alpha": 2}), "neg read"),
            ("output", lambda p: setattr(p.graph.output_node(), "args", ((p.node("neg"),),)), "output read"),
        ],
    )
    def test_a_pass_changes_only_what_it_claims(
        self, name: str, change: Callable[[Program], None], message: str
    ) -> None:
        class Meddling(DropDoubleRelu):
            def rewrite(self, edit: Edit, plan: Inner) -> str:
                change(edit.program)
                edit.replace(edit.anchor, plan.value)
                return name

        with pytest.raises(InternalError, match=f"meddling changed what it does not claim: {message}"):
            run_passes(chain(), [Meddling()])

    def test_claims_that_follow_each_other_are_claimed(self) -> None:
        class Twice(DropDoubleRelu):
            def rewrite(self, edit: Edit, plan: Inner) -> str:
                first = edit.call(aten.clamp.default, plan.value, 0)
                edit.replace(edit.anchor, first)
                edit.replace(first, edit.call(aten.clamp.default, plan.value, 0.0))
                return "twice"

        (record,) = run_passes(chain(), [Twice()]).records
        assert record.outcome == "kept"

    def test_no_pass_writes_into_a_tensor(self) -> None:
        class Writing(DropDoubleRelu):
            def rewrite(self, edit: Edit, plan: Inner) -> str:
                edit.program.tensors["first.weight"].mul_(2.0)
                edit.replace(edit.anchor, plan.value)
                return "wrote"

        with pytest.raises(InternalError, match="writing wrote into 'first.weight': tensors are immutable"):
            run_passes(own(chain()), [Writing()])

    def test_no_refusing_pass_writes_into_a_tensor_either(self) -> None:
        class WritingCheck(DropDoubleRelu):
            def check(self, site: Site) -> Inner:
                site.program.tensors["first.weight"].mul_(2.0)
                site.refuse("not-linear-producer", "no")

        with pytest.raises(InternalError, match="writing-check"):
            run_passes(own(chain()), [WritingCheck()])

    def test_no_pass_leaves_an_illegal_graph(self) -> None:
        class InPlace(DropDoubleRelu):
            def rewrite(self, edit: Edit, plan: Inner) -> str:
                edit.replace(edit.anchor, edit.call(aten.relu_.default, plan.value))
                return "in place"

        with pytest.raises(InternalError, match="after in-place the graph is not legal: .*writes into its arguments"):
            run_passes(chain(), [InPlace()])

    def test_no_pass_reads_what_is_computed_later(self) -> None:
        class TooEarly(DropDoubleRelu):
            def rewrite(self, edit: Edit, plan: Inner) -> str:
                with edit.before(plan.value):
                    edit.replace(edit.anchor, edit.call(aten.neg.default, plan.value))
                return "too early"

        with pytest.raises(InternalError, match="after too-early rewrote relu_1 the graph is not legal: .* before"):
            run_passes(chain(), [TooEarly()])

    def test_no_pass_changes_the_shape_of_an_output(self) -> None:
        class Negated(nn.Module):
            def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
                return torch.relu(torch.relu(x)), torch.relu(y)

        class OtherInput(DropDoubleRelu):
            """Both have one free axis and three features, but the axes are two dimensions."""

            def rewrite(self, edit: Edit, plan: Inner) -> str:
                edit.replace(edit.anchor, edit.program.node("y"))
                return "other"

        dynamic = {"x": {0: "rows"}, "y": {0: "columns"}}
        program = capture(Negated().eval(), (torch.ones(5, 3), torch.ones(7, 3)), dynamic=dynamic)
        message = r"other-input changed output 'output.0' from torch.float32 \['rows', 3\] to .*\['columns', 3\]"
        with pytest.raises(InternalError, match=message):
            run_passes(program, [OtherInput()])

    def test_no_pass_changes_the_inputs(self) -> None:
        class MoreInputs(DropDoubleRelu):
            def rewrite(self, edit: Edit, plan: Inner) -> str:
                edit.program.inputs = (*edit.program.inputs, Input("more", torch.float32))
                edit.replace(edit.anchor, plan.value)
                return "more"

        with pytest.raises(InternalError, match="more-inputs changed the inputs or outputs"):
            run_passes(chain(), [MoreInputs()])

    @pytest.mark.parametrize("error", [ValueError("the reason"), KeyError("the reason"), MemoryError("the reason")])
    def test_exceptions_keep_their_type_and_name_the_pass(self, error: Exception) -> None:
        class Failing(DropDoubleRelu):
            strength: float = 1.0

            def rewrite(self, edit: Edit, plan: Inner) -> str:
                raise error

        with pytest.raises(type(error), match="the reason") as caught:
            run_passes(chain(), [Failing(strength=2.5)])
        assert "failing:strength=2.5 rewrote %relu_1" in "".join(caught.value.__notes__)


class TestRecords:
    def test_one_per_pass_in_order(self) -> None:
        run = run_passes(chain(), [DropDoubleRelu(), SplitLinear(), DropDoubleRelu()])
        assert [(r.name, r.outcome, len(r.applied), len(r.refused)) for r in run.records] == [
            ("drop-double-relu", "kept", 1, 1),
            ("split-linear", "kept", 2, 0),
            ("drop-double-relu", "unchanged", 0, 1),
        ]
        assert all(r.anchors == len(r.applied) + len(r.refused) for r in run.records)
        assert run.records[0].refusal_counts == {"not-linear-producer": 1}

    def test_added_bytes_are_those_of_the_stored_tensors(self) -> None:
        (record,) = run_passes(chain(), [SplitLinear()]).records
        assert record.added_bytes == 0  # the halves replace the whole

    def test_passes_are_announced(self) -> None:
        seen: list[str] = []
        run_passes(chain(), [DropDoubleRelu(), SplitLinear()], on_pass=lambda p: seen.append(p.pass_name()))
        assert seen == ["drop-double-relu", "split-linear"]

    def test_the_callers_program_is_unchanged(self) -> None:
        program = chain()
        before = fingerprint(program.graph, program.tensors)
        run_passes(program, [DropDoubleRelu(), SplitLinear(), DropDoubleNegation()])
        assert fingerprint(program.graph, program.tensors) == before


class Veto:
    """Judges as told; None where nothing is said."""

    def __init__(self, **verdicts: Verdict | None) -> None:
        self.verdicts = verdicts
        self.started: list[Program] = []
        self.judged: list[PassRun] = []
        self.kept: list[PassRun] = []

    def start(self, program: Program) -> None:
        self.started.append(program)

    def judge(self, run: PassRun) -> Verdict | None:
        self.judged.append(run)
        return self.verdicts.get(run.rewrite_pass.pass_name().replace("-", "_"))

    def keep(self, run: PassRun) -> None:
        self.kept.append(run)


DIFFERENT = Verdict(Outcome.DIFFERENT, (Finding("twin", "output", "prime", "it differs"),))


class TestRevert:
    def test_only_the_vetoed_pass_is_undone(self) -> None:
        veto = Veto(split_linear=DIFFERENT, drop_double_relu=Verdict(Outcome.EQUIVALENT))
        run = run_passes(chain(), [DropDoubleRelu(), SplitLinear(), DropDoubleNegation()], [veto])
        assert [(r.outcome, r.reason) for r in run.records] == [
            ("kept", ""),
            ("reverted", "twin gate: output: it differs (case prime)"),
            ("kept", ""),
        ]
        assert [str(n.target) for n in run.program.graph.nodes if n.op == "call_function"] == [
            "aten.linear.default",
            "aten.relu.default",
            "aten.linear.default",
        ]
        assert not [name for name in run.program.tensors if name.endswith("part")]
        assert run.records[1].added_bytes == 0
        assert len(run.records[1].applied) == 2  # what it did stays in the report

    def test_the_next_pass_is_judged_against_the_undone_program(self) -> None:
        veto = Veto(drop_double_relu=DIFFERENT)
        run_passes(chain(), [DropDoubleRelu(), SplitLinear()], [veto])
        relus = [n for n in veto.judged[1].before.graph.nodes if n.target is aten.relu.default]
        assert len(relus) == 2

    def test_passes_that_changed_nothing_are_not_judged(self) -> None:
        veto = Veto()
        run_passes(chain(), [DropDoubleRelu(), DropDoubleRelu()], [veto])
        assert len(veto.judged) == 1
        assert len(veto.started) == 1

    def test_the_first_veto_of_several_instruments_decides(self) -> None:
        second = Veto(drop_double_relu=Verdict(Outcome.EQUIVALENT))
        run = run_passes(chain(), [DropDoubleRelu()], [Veto(drop_double_relu=DIFFERENT), second])
        assert run.records[0].outcome == "reverted"
        assert second.judged == []

    def test_all_instruments_hear_what_is_kept_and_nothing_else(self) -> None:
        first, second = Veto(), Veto(split_linear=DIFFERENT)
        run_passes(chain(), [DropDoubleRelu(), SplitLinear(), DropDoubleRelu()], [first, second])
        assert [run.rewrite_pass.pass_name() for run in first.judged] == ["drop-double-relu", "split-linear"]
        for instrument in (first, second):
            assert [run.rewrite_pass.pass_name() for run in instrument.kept] == ["drop-double-relu"]

    @pytest.mark.parametrize("outcome", [Outcome.EQUIVALENT, Outcome.APPROXIMATE])
    def test_a_good_verdict_keeps(self, outcome: Outcome) -> None:
        run = run_passes(chain(), [DropDoubleRelu()], [Veto(drop_double_relu=Verdict(outcome))])
        assert run.records[0].outcome == "kept"
        assert run.records[0].verdict is not None and run.records[0].verdict.outcome is outcome

    def test_an_inconclusive_verdict_reverts_and_says_why(self) -> None:
        inconclusive = Verdict(Outcome.INCONCLUSIVE, notes=("no case ran",))
        (record,) = run_passes(chain(), [DropDoubleRelu()], [Veto(drop_double_relu=inconclusive)]).records
        assert record.outcome == "reverted"
        assert record.reason


def test_an_illegal_captured_program_is_refused_before_any_pass() -> None:
    program = chain()
    relu: fx.Node = program.node("relu")
    del relu.meta["val"]
    with pytest.raises(InternalError, match="after the captured program the graph is not legal"):
        run_passes(program, [DropDoubleRelu()])


def test_records_without_an_instrument_have_no_verdict() -> None:
    record: Any = run_passes(chain(), [DropDoubleRelu()]).records[0]
    assert record.verdict is None and record.outcome == "kept"
