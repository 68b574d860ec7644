"""The helpers of ``flowopt.testing`` must fail for passes that are wrong, and say what is."""

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, fx, nn

from flowopt.errors import InternalError
from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.rewrite import Edit, Exactness, RewritePass, Site
from flowopt.testing import assert_equivalent, assert_refuses, assert_rewrites
from tests.zoo.models import randomise

_aten = torch.ops.aten
BEFORE = {"aten.neg": 2, "aten.linear": 1}
AFTER = {"aten.neg": 0, "aten.linear": 1}


class Negations(nn.Module):
    """Two negations in a row, and a linear layer: small, with something to remove and a weight to damage."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        projected: Tensor = self.fc(x.neg().neg())
        return projected


class RemoveNegations(RewritePass[fx.Node]):
    """The right pass: -(-x) is x. Each wrong one below differs in what its name says."""

    exactness: ClassVar[Exactness] = Exactness.EXACT
    anchors: ClassVar[tuple[Any, ...]] = (_aten.neg.default,)

    def check(self, site: Site) -> fx.Node:
        inner = site.node.args[0]
        if not isinstance(inner, fx.Node) or inner.target is not _aten.neg.default:
            site.refuse("not-linear-producer", "what is negated is not negated itself")
        source = inner.args[0]
        assert isinstance(source, fx.Node)
        return source

    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        edit.replace(edit.anchor, plan)
        return "removed"


class OffByOnePercent(RemoveNegations):
    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        edit.replace(edit.anchor, edit.call(_aten.mul.Tensor, plan, 1.01))
        return "removed"


class OffInFloat64(RemoveNegations):
    """Right to float32's last bit, wrong as an identity: only the float64 twin can tell."""

    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        edit.replace(edit.anchor, edit.call(_aten.mul.Tensor, plan, 1.0 + 2e-8))
        return "removed"


class BetweenTheTolerances(RemoveNegations):
    """What users' pipelines may keep (1e-9), our own passes may not (1e-10)."""

    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        edit.replace(edit.anchor, edit.call(_aten.mul.Tensor, plan, 1.0 + 5e-10))
        return "removed"


class SwallowsNan(RemoveNegations):
    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        edit.replace(edit.anchor, edit.call(_aten.nan_to_num.default, plan, 0.0))
        return "removed"


class RemovesNothing(RemoveNegations):
    """Reports a rewrite and does none."""

    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        return "removed"


class ChangesWhileRefusing(RemoveNegations):
    def check(self, site: Site) -> fx.Node:
        source = super().check(site)
        site.node.replace_all_uses_with(source)
        site.refuse("not-constant", "nothing to see here")


class ChangesWithoutClaim(RemoveNegations):
    """Claims that x is x, and rewires something else behind the claim's back."""

    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        edit.anchor.replace_all_uses_with(plan)
        copy = edit.call(_aten.clone.default, plan)
        edit.replace(edit.anchor, copy)
        return "removed"


class FiresForEver(RemoveNegations):
    """Right, but leaves its own pattern behind."""

    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        edit.replace(edit.anchor, edit.call(_aten.neg.default, edit.call(_aten.neg.default, plan)))
        return "removed and put back"


class WritesInPlace(RemoveNegations):
    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        edit.program.tensors["fc.weight"].mul_(1.0)
        return super().rewrite(edit, plan)


class WritesInPlaceUnseen(RemoveNegations):
    """Through NumPy, where torch does not count versions; a zero becomes -0.0, which no output shows."""

    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        edit.program.tensors["fc.bias"].numpy()[0] = -0.0
        return super().rewrite(edit, plan)


class PlansWithTensors(RemoveNegations):
    def check(self, site: Site) -> Any:
        return super().check(site), torch.ones(1)

    def rewrite(self, edit: Edit, plan: Any) -> str:
        return super().rewrite(edit, plan[0])


class RefusesEverything(RemoveNegations):
    def check(self, site: Site) -> fx.Node:
        site.refuse("post-norm", "not today")


class RefusesWithoutMessage(RemoveNegations):
    def check(self, site: Site) -> fx.Node:
        site.refuse("post-norm", "")


class RefusesWithAnUnknownCode(RemoveNegations):
    def check(self, site: Site) -> fx.Node:
        site.refuse("no-such-code", "not today")


class FindsNoSite(RemoveNegations):
    anchors: ClassVar[tuple[Any, ...]] = ()


class Breaks(RemoveNegations):
    def check(self, site: Site) -> fx.Node:
        raise ZeroDivisionError("in check")


class KeepsFloat32(RewritePass[fx.Node]):
    """Does its weight algebra in float32 behind the edit's back, where float64 is asked for."""

    exactness: ClassVar[Exactness] = Exactness.EXACT
    anchors: ClassVar[tuple[Any, ...]] = (_aten.linear.default,)

    def check(self, site: Site) -> fx.Node:
        site.require(not site.node.meta.get("rewritten_by"), "already-canonical", "done")
        return site.node

    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        x, weight, bias = edit.anchor.args
        assert isinstance(weight, fx.Node)
        third = (edit.program.tensors[str(weight.target)].float() / 3.0).double()
        small = edit.call(_aten.linear.default, x, edit.parameter("third", third, like=weight))
        tripled = edit.call(_aten.mul.Tensor, small, 3.0)
        edit.replace(edit.anchor, edit.call(_aten.add.Tensor, tripled, bias))
        return "in thirds"


def negations() -> nn.Module:
    module = Negations()
    randomise(module, seed=1)
    return module.eval()


X = torch.randn(2, 4, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def program() -> Program:
    # Captured once: every pass here leaves the caller's program alone, but for those that write in place.
    return capture(negations(), (X,), dynamic={"x": {0: "batch"}})


# assert_rewrites


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


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (OffByOnePercent, "off-by-one-percent was reverted: twin gate: output: in float64 it differs by 1.*e-02"),
        (OffInFloat64, "was reverted: twin gate"),
        (BetweenTheTolerances, "the float64 twin differs by .*e-10 of a row's scale"),
        (SwallowsNan, "was reverted: specials gate: output: swallowed"),
        (PlansWithTensors, "was reverted: replay gate: .*a plan holds a tensor"),
        (FiresForEver, "fires-for-ever is not idempotent"),
        (RefusesEverything, "refuses-everything refused every site: {'post-norm': 2}; not today"),
        (FindsNoSite, "finds-no-site refused every site: {}; no site"),
    ],
)
def test_fails_for_a_wrong_pass(wrong: type[RewritePass[Any]], message: str, program: Program) -> None:
    with pytest.raises(AssertionError, match=message):
        assert_rewrites(wrong(), program, before={"aten.neg": 2}, after={})


@pytest.mark.parametrize(
    ("lying", "message"),
    [
        (RemovesNothing, "removes-nothing reports .*but"),
        (ChangesWhileRefusing, "changes-while-refusing refused every site but changed the program"),
        (ChangesWithoutClaim, "changes-without-claim changed what it does not claim"),
        (RefusesWithAnUnknownCode, "'no-such-code' is in no vocabulary"),
    ],
)
def test_fails_for_a_pass_that_breaks_a_promise(lying: type[RewritePass[Any]], message: str, program: Program) -> None:
    with pytest.raises(InternalError, match=message):
        assert_rewrites(lying(), program, before=BEFORE, after={})


def test_fails_for_a_pass_that_writes_into_a_parameter() -> None:
    with pytest.raises(InternalError, match="writes-in-place wrote into 'fc.weight'"):
        assert_rewrites(WritesInPlace(), negations(), (X,), before=BEFORE, after={})


def test_fails_for_a_pass_that_writes_into_a_parameter_behind_torch_s_back() -> None:
    model = negations()
    model.get_parameter("fc.bias").data[0] = 0.0
    with pytest.raises(AssertionError, match="writes-in-place-unseen changed the caller's model"):
        assert_rewrites(WritesInPlaceUnseen(), model, (X,), before=BEFORE, after={})


def test_fails_for_weight_algebra_in_float32(program: Program) -> None:
    with pytest.raises(AssertionError, match="keeps-float32 was reverted: twin gate"):
        assert_rewrites(KeepsFloat32(), program, before=BEFORE, after={})


def test_an_exception_keeps_its_type_and_names_the_place(program: Program) -> None:
    with pytest.raises(ZeroDivisionError) as raised:
        assert_rewrites(Breaks(), program, before=BEFORE, after={})
    assert "while breaks checked %neg" in raised.value.__notes__[0]


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


# assert_refuses


def test_passes_for_a_refusal(program: Program) -> None:
    run = assert_refuses(RefusesEverything(), program, code="post-norm")
    assert run.records[0].refusal_counts == {"post-norm": 2}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (RemoveNegations, "remove-negations fired at neg_1: removed"),
        (FindsNoSite, "finds-no-site found no site"),
        (RefusesWithoutMessage, "refuses-without-message refuses without a message"),
    ],
)
def test_fails_unless_every_site_is_refused(wrong: type[RewritePass[Any]], message: str, program: Program) -> None:
    with pytest.raises(AssertionError, match=message):
        assert_refuses(wrong(), program, code="post-norm")


def test_fails_for_another_code(program: Program) -> None:
    with pytest.raises(AssertionError, match=r"refused with \['post-norm'\], not 'not-constant': not today"):
        assert_refuses(RefusesEverything(), program, code="not-constant")


def test_fails_when_only_some_sites_have_the_code(program: Program) -> None:
    class RefusesTwoWays(RemoveNegations):
        def check(self, site: Site) -> fx.Node:
            site.refuse("post-norm" if site.node.name == "neg" else "not-constant", "not today")

    with pytest.raises(AssertionError, match=r"\['not-constant', 'post-norm'\]"):
        assert_refuses(RefusesTwoWays(), program, code="post-norm")


def test_fails_for_a_pass_that_changes_while_it_refuses(program: Program) -> None:
    with pytest.raises(InternalError, match="refused every site but changed the program"):
        assert_refuses(ChangesWhileRefusing(), program, code="not-constant")


# assert_equivalent


def with_bias(program: Program, change: float) -> Program:
    """The program with one element of its bias changed."""
    changed = program.copy()
    changed.tensors["fc.bias"] = changed.tensors["fc.bias"] * torch.tensor([1.0, 1.0 + change, 1.0])
    return changed


def test_a_program_is_equivalent_to_itself(program: Program) -> None:
    assert assert_equivalent(program, with_bias(program, 0.0)).power < 1e-5


def test_a_program_is_not_equivalent_to_one_with_another_bias(program: Program) -> None:
    with pytest.raises(AssertionError, match="different: ratio gate: output: .* and 3 more"):
        assert_equivalent(program, with_bias(program, 0.01))
