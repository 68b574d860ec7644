"""Decisions inside a model: whoever takes an undecided one the other way is not accused, everybody else is."""

import math
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.report.verdict import Outcome, Verdict
from flowopt.verification.evidence import Evidence, collect_evidence
from flowopt.verification.inputs.case import Case
from flowopt.verification.output_evidence import OutputEvidence
from flowopt.verification.verify_outputs import verify_outputs


class Applied(nn.Module):
    """A function of inputs and stored tensors."""

    def __init__(self, body: Callable[..., Tensor], *stored: Tensor) -> None:
        super().__init__()
        self.body = body
        self.stored = nn.ParameterList([nn.Parameter(t, requires_grad=False) for t in stored])

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x, *self.stored)


def program_of(body: Callable[..., Tensor], x: Tensor, *stored: Tensor) -> Program:
    return capture(Applied(body, *stored).eval(), (x,))


def evidence_of(program: Program, x: Tensor) -> Evidence:
    return collect_evidence(program, cases=[Case("given", {}, {"x": x})])


def known_of(program: Program, x: Tensor) -> OutputEvidence:
    (case,) = evidence_of(program, x).cases
    (known,) = case.outputs.values()
    return known


def verdict(program: Program, x: Tensor, answer: Tensor) -> Verdict:
    """Of a candidate that gives this answer."""
    (output,) = program.outputs

    def run(inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {output.name: answer}

    return verify_outputs(evidence_of(program, x), run)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def scores() -> Tensor:
    """Weights of six scores; the second and the fifth are the same but for less than rounding, and the largest."""
    weight = random(6, 8)
    weight[1] = 3.0
    weight[4] = 3.0 * (1 + 2e-7)
    return weight


def rows() -> Tensor:
    """Three rows whose best scores are the two that are the same, and one in which they are the worst."""
    x = random(4, 8, seed=1).abs()
    x[3] = -x[3]
    return x


def best(x: Tensor, weight: Tensor) -> Tensor:
    return (x @ weight.t()).argmax(-1)


class TestDiscreteOutputs:
    def test_the_runner_up_of_a_close_race_is_not_accused_and_is_counted(self) -> None:
        program, x = program_of(best, rows(), scores()), rows()
        answer = best(x, scores())
        assert set(answer[:3].tolist()) <= {1, 4} and int(answer[3]) not in (1, 4)
        other = torch.where((answer == 1) | (answer == 4), 5 - answer, answer)
        for given in (answer, other):
            result = verdict(program, x, given)
            assert result.findings == () and result.figures[0].undecided == 3

    def test_another_choice_where_the_race_is_clear_is_accused(self) -> None:
        program, x = program_of(best, rows(), scores()), rows()
        answer = best(x, scores())
        answer[3] = 1
        result = verdict(program, x, answer)
        assert [f.gate for f in result.findings] == ["discrete"]

    def test_an_output_that_hangs_on_undecided_decisions_alone_is_inconclusive(self) -> None:
        program, x = program_of(best, rows()[:3], scores()), rows()[:3]
        result = verdict(program, x, best(x, scores()))
        assert result.outcome is Outcome.INCONCLUSIVE
        assert "hang on decisions that rounding may turn" in result.reason


class TestFloatOutputs:
    def test_a_row_of_a_table_that_a_close_race_chose(self) -> None:
        table = random(6, 5, seed=2)

        def chosen(x: Tensor, weight: Tensor, table: Tensor) -> Tensor:
            return nn.functional.embedding(best(x, weight), table) * x[:, :1]

        program, x = program_of(chosen, rows(), scores(), table), rows()
        answer = chosen(x, scores(), table)
        other = answer.clone()
        other[0] = table[5 - int(best(x, scores())[0])] * x[0, 0]
        assert verdict(program, x, answer).outcome is Outcome.INCONCLUSIVE  # three of four rows hang on a race
        assert verdict(program, x, other).findings == ()
        assert verdict(program, x, other).figures[0].undecided == 15
        other[3] = table[1] * x[3, 0]
        assert [f.gate for f in verdict(program, x, other).findings] == ["ratio"]

    def test_undecided_elements_do_not_blur_the_others(self) -> None:
        known = known_of(program_of(lambda x, w: best(x, w).float()[:, None] + x, rows(), scores()), rows())
        assert known.own_error is not None and known.undecided is not None
        assert known.undecided.all(-1).tolist() == [True, True, True, False]
        assert float(known.own_error.max()) < 1e-6  # though some copy chose otherwise, and is off by 3

    def test_a_floor_of_what_is_computed(self) -> None:
        def floored(x: Tensor, weight: Tensor) -> Tensor:
            return torch.floor(x * weight)

        # 0.3 * 10 is 3.0000000119 in float64 of float32's 0.3, and 3 in float32.
        x, weight = torch.tensor([[0.3, 0.7, 0.5]]), torch.tensor([10.0, 3.0, 3.0])
        program = program_of(floored, x, weight)
        assert verdict(program, x, torch.tensor([[2.0, 2.0, 1.0]])).findings == ()
        assert verdict(program, x, torch.tensor([[3.0, 2.0, 1.0]])).outcome is Outcome.EQUIVALENT
        assert [f.gate for f in verdict(program, x, torch.tensor([[3.0, 1.0, 1.0]])).findings] == ["ratio"]

    def test_a_condition_between_continuous_sides_leaves_nothing_undecided(self) -> None:
        x = random(8, 16, seed=3)
        known = known_of(program_of(lambda x, w: torch.where(x @ w > 0, x @ w, 0.1 * (x @ w)), x, random(16, 16)), x)
        assert known.undecided is None or not bool(known.undecided.any())

    def test_an_early_decision_shows_through_a_later_one_that_wavers_elsewhere(self) -> None:
        table = torch.tensor([[1.0], [5.0], [1.0], [1.0], [-5.0], [1.0]])

        def chain(x: Tensor, weight: Tensor, table: Tensor) -> Tensor:
            chosen = nn.functional.embedding(best(x, weight), table)
            zero = x[1:2, :1] * 0.1 + x[1:2, :1] * 0.2 - x[1:2, :1] * 0.3
            value = torch.cat([chosen[:1], zero, x[3:, :1]])
            return (value > 0).to(x.dtype).expand(-1, 4) * 2.0

        # The first row hangs on the race, the second on a difference that rounding leaves, the third on nothing.
        x = rows()
        program = program_of(chain, x, scores(), table)
        known = known_of(program, x)
        assert known.undecided is not None
        assert known.undecided.all(-1).tolist() == [True, True, False]


def buckets(x: Tensor, table: Tensor) -> Tensor:
    """Relative positions as T5 counts them: exact up to 8, then by their logarithm."""
    distance = torch.arange(x.shape[0]) + torch.zeros_like(x).to(torch.int64)
    far = 8 + (torch.log(distance.to(x.dtype) / 8) / math.log(16) * 8).to(torch.int64)
    bucket = torch.where(distance < 8, distance, torch.clamp(far, max=15))
    return nn.functional.embedding(bucket, table)


class TestPositions:
    def test_a_bucket_on_its_boundary_may_be_the_one_before(self) -> None:
        # log(2) / log(16) * 8 is 2, and another library's logarithm may leave 1.9999999. No weight is in it: no copy
        # of the ensemble moves it, and float32 may be right by luck.
        x, table = torch.zeros(70), random(16, 3)
        program = program_of(buckets, x, table)
        answer = buckets(x, table)
        for position, bucket in ((16, 10), (32, 12), (64, 14)):
            other = answer.clone()
            other[position] = table[bucket - 1]
            assert verdict(program, x, other).findings == (), position
        assert verdict(program, x, answer).outcome is Outcome.EQUIVALENT

    @pytest.mark.parametrize("position", [3, 9, 20, 69])
    def test_another_one_elsewhere_is_accused(self, position: int) -> None:
        x, table = torch.zeros(70), random(16, 3)
        answer = buckets(x, table)
        answer[position] = table[0]
        assert [f.gate for f in verdict(program_of(buckets, x, table), x, answer).findings] == ["ratio"]


class TestExactNumbers:
    def test_whole_inputs_decide(self) -> None:
        x = torch.tensor([3.0, 2.5, -1.0, 0.0, 7.3])
        known = known_of(program_of(lambda x: torch.floor(x), x), x)
        assert known.undecided is None and known.own_error is not None and float(known.own_error.max()) == 0.0

    def test_the_edge_of_a_comparison_and_of_a_tie_is_not_excused(self) -> None:
        def edges(x: Tensor) -> Tensor:
            return torch.where(x > 0.5, x, -x) + torch.round(x)

        x = torch.tensor([0.5, 2.5, -1.5, 0.3])
        program = program_of(edges, x)
        assert verdict(program, x, edges(x)).outcome is Outcome.EQUIVALENT
        assert verdict(program, x, torch.where(x >= 0.5, x, -x) + torch.round(x)).outcome is Outcome.DIFFERENT
        rounded_up = torch.where(x > 0.5, x, -x) + torch.floor(x + 0.5)
        assert verdict(program, x, rounded_up).outcome is Outcome.DIFFERENT

    def test_a_float_mask_decides(self) -> None:
        def masked(x: Tensor, weight: Tensor) -> Tensor:
            hidden = 1.0 - x
            return torch.where(hidden.to(torch.bool), -1.0, weight) * (x == 1) * x.long()

        x = torch.tensor([1.0, 0.0, 1.0, 1.0])
        known = known_of(program_of(masked, x, random(4)), x)
        assert known.undecided is None and known.own_error is not None
        assert float(known.own_error.max()) < 1e-6

    def test_stored_bounds_that_equal_a_number_decide(self) -> None:
        def bucketed(x: Tensor, bounds: Tensor) -> Tensor:
            counts = x.sum(-1)
            return torch.bucketize(counts, bounds).float() + (counts > bounds[:1]).float() * (counts >= bounds)

        x = torch.ones(3, 3)
        known = known_of(program_of(bucketed, x, torch.tensor([1.0, 3.0, 5.0])), x)
        assert known.own_error is not None and float(known.own_error.max()) == 0.0

    def test_what_a_relu_cut_off_decides_and_what_it_left_wavers(self) -> None:
        def positive(x: Tensor, weight: Tensor) -> Tensor:
            return torch.relu(x * weight) > 0

        x, weight = torch.tensor([[1.0, -1.0, 2.0]]), torch.tensor([0.7, 0.7, 0.7])
        known = known_of(program_of(positive, x, weight), x)
        assert known.undecided is not None and not bool(known.undecided.any())

    def test_a_learned_bound_is_compared_with_what_is_computed(self) -> None:
        def above(x: Tensor, weight: Tensor, bound: Tensor) -> Tensor:
            return x * weight > bound

        x, weight = torch.tensor([[0.3, 0.7, 0.5]]), torch.tensor([10.0, 3.0, 3.0])
        known = known_of(program_of(above, x, weight, torch.tensor([3.0])), x)
        assert known.undecided is not None and known.undecided.tolist() == [[True, False, False]]


def test_a_decision_that_leads_out_of_the_model_skips_its_case_by_name() -> None:
    def looked_up(x: Tensor, weight: Tensor, table: Tensor) -> Tensor:
        return nn.functional.embedding(torch.floor(x * weight).long(), table)

    program = program_of(looked_up, torch.tensor([0.5, 0.1]), torch.tensor([5.0, 3.0]), random(5, 2))
    assert len(evidence_of(program, torch.tensor([0.5, 0.1])).cases) == 1
    # Almost 5, and the table has no sixth row.
    evidence = evidence_of(program, torch.tensor([1 - 2**-24, 0.1]))
    assert evidence.cases == ()
    assert "given: a decision that rounding may turn leads out of what the model runs" in evidence.skipped[0]
