"""assert_rewrites must fail for passes that are wrong, and say what is."""

from typing import Any

import pytest
import torch
from torch import Tensor

from flowopt.errors import InternalError, UserError
from flowopt.program.program import Program
from flowopt.rewrite import RewritePass
from flowopt.testing import assert_rewrites
from flowopt.verification.verify_passes import VerifyPasses
from tests.testing import lying_passes as lying
from tests.testing import wrong_passes as wrong
from tests.testing.negations import AFTER, BEFORE, Negations, RemoveNegations, X, negations
from tests.zoo.models import randomise


def test_passes_for_a_right_pass(program: Program) -> None:
    run = assert_rewrites(RemoveNegations(), program, before=BEFORE, after=AFTER)
    assert [r.summary for r in run.records[0].applied] == ["removed"]


def test_takes_a_module_with_inputs_by_position_or_by_name() -> None:
    assert_rewrites(RemoveNegations(), negations(), (X,), before=BEFORE, after=AFTER)
    assert_rewrites(RemoveNegations(), negations(), {"x": X}, before=BEFORE, after=AFTER)


def test_takes_free_dimensions() -> None:
    free: dict[str, Any] = {"dynamic": {"x": {0: "batch"}}, "dims": {"batch": (1, 8)}}
    run = assert_rewrites(RemoveNegations(), negations(), (X,), before=BEFORE, after=AFTER, **free)
    assert run.program.dims[0].maximum == 8


@pytest.mark.parametrize("level", ["quick", "full"])
def test_level_and_seed_reach_the_verification(level: Any, program: Program) -> None:
    run = assert_rewrites(RemoveNegations(), program, before=BEFORE, after=AFTER, level=level, seed=7)
    assert run.records[0].verdict is not None
    assert (run.records[0].verdict.level, run.records[0].verdict.seed) == (level, 7)


def test_refuses_a_level_that_does_not_exist(program: Program) -> None:
    level: Any = "thorough"
    with pytest.raises(UserError, match="level='thorough' must be 'quick' or 'full'"):
        assert_rewrites(RemoveNegations(), program, before=BEFORE, after=AFTER, level=level)


@pytest.mark.parametrize(
    ("pass_class", "message"),
    [
        (wrong.OffByOnePercent, "off-by-one-percent was reverted: twin gate: output: in float64 it differs by 1.*e-02"),
        (wrong.OffInFloat64, "was reverted: twin gate"),
        (wrong.BetweenTheTolerances, r"the float64 twin differs by .*e-10 of a row's scale, .*: output \(case "),
        (wrong.SwallowsNan, "was reverted: specials gate: output: swallowed"),
        (wrong.PlansWithTensors, "was reverted: replay gate: .*a plan holds a tensor"),
        (wrong.KeepsFloat32, "keeps-float32 was reverted: twin gate"),
        (wrong.BeyondItsBudget, "beyond-its-budget was reverted: budget gate: output: .*60 dB is the least"),
        (wrong.FiresForEver, "fires-for-ever is not idempotent: it fires again at neg_default_1; let check refuse"),
        (wrong.RefusesEverything, "refuses-everything refused every site: {'post-norm': 2}; not today"),
        (wrong.FindsNoSite, "finds-no-site refused every site: {}; no site"),
    ],
)
def test_fails_for_a_wrong_pass(pass_class: type[RewritePass[Any]], message: str, program: Program) -> None:
    with pytest.raises(AssertionError, match=message):
        assert_rewrites(pass_class(), program, before={"aten.neg": 2}, after={})


def test_passes_for_an_approximate_pass_within_its_budget(program: Program) -> None:
    assert_rewrites(wrong.WithinItsBudget(), program, before=BEFORE, after={"aten.neg": 0})


@pytest.mark.parametrize(
    ("pass_class", "message"),
    [
        (lying.RemovesNothing, "removes-nothing breaks a promise of passes: .* replaced nothing"),
        (lying.ClaimsTheSame, "claims-the-same reports 1 rewrites but changed nothing"),
        (lying.ChangesWhileRefusing, "changes-while-refusing refused every site but changed the program"),
        (lying.ChangesWithoutClaim, "changes-without-claim changed what it does not claim"),
        (lying.ChangesTheType, r"changes-the-type breaks a promise of passes: .* became torch.float64"),
        (lying.CallsInPlace, "after calls-in-place the graph is not legal: .* writes into its arguments"),
        (lying.RecordsNothing, "after records-nothing the graph is not legal: .* no recorded metadata"),
        (lying.ReadsTooEarly, "after reads-too-early rewrote neg_1 the graph is not legal"),
        (lying.ReturnsMore, "returns-more breaks a promise of passes: .*output"),
        (lying.RenamesTheInput, "renames-the-input changed the inputs or outputs"),
        (lying.RefusesWithAnUnknownCode, "'no-such-code' is in no vocabulary"),
        (lying.LiesTheSecondTime, "lies-the-second-time breaks a promise of passes: .* replaced nothing"),
    ],
)
def test_fails_for_a_pass_that_breaks_a_promise(
    pass_class: type[RewritePass[Any]], message: str, program: Program
) -> None:
    with pytest.raises(AssertionError, match=message) as raised:
        assert_rewrites(pass_class(), program, before=BEFORE, after={})
    assert isinstance(raised.value.__cause__, InternalError)


def test_a_broken_promise_names_the_place(program: Program) -> None:
    with pytest.raises(AssertionError) as raised:
        assert_rewrites(lying.RefusesWithAnUnknownCode(), program, before=BEFORE, after={})
    assert "while refuses-with-an-unknown-code checked %neg" in raised.value.__notes__[0]


def test_fails_for_a_pass_that_writes_into_a_parameter() -> None:
    with pytest.raises(AssertionError, match="writes-in-place wrote into 'fc.weight': tensors are immutable"):
        assert_rewrites(lying.WritesInPlace(), negations(), (X,), before=BEFORE, after={})


class Scaled(Negations):
    """Everything that a module can keep a tensor in, each with a zero to write into."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("offset", torch.ones(3), persistent=True)
        self.register_buffer("scale", torch.ones(3), persistent=False)
        self.gain = torch.ones(3)
        randomise(self, seed=3)
        for tensor in (self.fc.bias.data, self.get_buffer("offset"), self.get_buffer("scale"), self.gain):
            tensor[0] = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.get_buffer("scale") * self.gain + self.get_buffer("offset")


@pytest.mark.parametrize("name", ["fc.bias", "offset", "scale", "gain"])
def test_fails_for_a_pass_that_writes_behind_torch_s_back(name: str) -> None:
    with pytest.raises(AssertionError, match=f"changed the caller's model: {name}; store new tensors"):
        assert_rewrites(lying.WritesUnseen(tensor=name), Scaled().eval(), (X,), before=BEFORE, after={})


def test_fails_for_a_pass_that_writes_in_its_second_run() -> None:
    model = Scaled().eval()
    with pytest.raises(AssertionError, match="changed the caller's model: fc.bias"):
        assert_rewrites(lying.WritesUnseenTheSecondTime(), model, (X,), before=BEFORE, after={})


def test_names_the_writing_before_what_follows_from_it() -> None:
    model = Scaled().eval()
    with pytest.raises(AssertionError, match="writes-while-refusing changed the caller's model: fc.bias"):
        assert_rewrites(lying.WritesWhileRefusing(), model, (X,), before=BEFORE, after={})


@pytest.mark.parametrize(
    ("pass_class", "place"),
    [
        (wrong.CrashesInSites, "while crashes-in-sites looked for its sites"),
        (wrong.CrashesInCheck, "while crashes-in-check checked %neg"),
        (wrong.CrashesInRewrite, "while crashes-in-rewrite rewrote %neg_1"),
    ],
)
def test_an_exception_keeps_its_type_and_names_the_place(
    pass_class: type[RewritePass[Any]], place: str, program: Program
) -> None:
    with pytest.raises(ZeroDivisionError) as raised:
        assert_rewrites(pass_class(), program, before=BEFORE, after={})
    assert place in raised.value.__notes__[0]


def test_a_defect_of_the_verifier_keeps_its_type(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(self: VerifyPasses, run: object) -> None:
        raise InternalError("the verifier is broken")

    monkeypatch.setattr(VerifyPasses, "judge", breaks)
    with pytest.raises(InternalError, match="the verifier is broken"):
        assert_rewrites(RemoveNegations(), program, before=BEFORE, after=AFTER)


def test_a_defect_of_the_given_program_keeps_its_type(program: Program) -> None:
    damaged = program.copy()
    del damaged.tensors["fc.bias"]
    with pytest.raises(InternalError, match="after the captured program the graph is not legal"):
        assert_rewrites(RemoveNegations(), damaged, before=BEFORE, after=AFTER)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ({"aten.neg": 3}, AFTER, "operators before: {'aten.neg': 2}, expected {'aten.neg': 3}"),
        (BEFORE, {"aten.neg": 1}, "operators after: {'aten.neg': 0}, expected {'aten.neg': 1}"),
        (BEFORE, {"aten.linear": 1, "aten.relu": 1}, "operators after: .*'aten.relu': 0"),
    ],
)
def test_fails_for_other_operator_counts(
    before: dict[str, int], after: dict[str, int], message: str, program: Program
) -> None:
    with pytest.raises(AssertionError, match=message):
        assert_rewrites(RemoveNegations(), program, before=before, after=after)


# max_ulp


def test_a_pass_that_rounds_as_before_is_zero_ulp_away(program: Program) -> None:
    assert_rewrites(RemoveNegations(), program, before=BEFORE, after=AFTER, max_ulp=0)


def test_fails_for_a_pass_that_rounds_more_than_max_ulp_allows(program: Program) -> None:
    message = r"rounds-twice moves output by \d+\.\d ulp of its row's largest element, allowed 0 \(case traced"
    with pytest.raises(AssertionError, match=message):
        assert_rewrites(wrong.RoundsTwice(), program, before=BEFORE, after={}, max_ulp=0)


def test_passes_for_a_pass_that_rounds_within_max_ulp(program: Program) -> None:
    max_ulp = 6  # 4 products, each of an x that three roundings moved by half an ulp
    assert_rewrites(wrong.RoundsTwice(), program, before=BEFORE, after={}, max_ulp=max_ulp)
