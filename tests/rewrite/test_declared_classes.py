import dataclasses
from typing import Any, ClassVar

import pytest
import torch
from torch import fx

import flowopt
from flowopt.errors import InternalError
from flowopt.program.program import Program
from flowopt.rewrite import Budget, Domain, Edit, Exactness, RewritePass, Site


def members(exactness: Exactness, **more: Any) -> dict[str, Any]:
    """Of a class that is complete but for what its exactness asks it to declare."""

    def check(self: Any, site: Site) -> fx.Node:
        return site.node

    def rewrite(self: Any, edit: Edit, plan: fx.Node) -> str:
        return "nothing"

    return {"exactness": exactness, "anchors": (), "check": check, "rewrite": rewrite, **more}


def defined(exactness: Exactness, **more: Any) -> type[RewritePass]:
    return type("Planted", (RewritePass,), members(exactness, **more))


BUDGET = Budget(min_snr_db=40.0)
EVERYWHERE = Domain("everywhere", lambda inputs: True, lambda inputs: inputs, lambda inputs: inputs)


class TestDefinition:
    def test_approximate_asks_for_a_budget(self) -> None:
        message = r"^Planted is APPROXIMATE and declares no budget: define budget\(self\) -> Budget$"
        with pytest.raises(TypeError, match=message):
            defined(Exactness.APPROXIMATE)
        with pytest.raises(TypeError, match=message):
            defined(Exactness.APPROXIMATE, domain=lambda self, program: EVERYWHERE)

    def test_exact_on_domain_asks_for_a_domain(self) -> None:
        message = r"^Planted is EXACT_ON_DOMAIN and declares no domain: define domain\(self, program\) -> Domain$"
        with pytest.raises(TypeError, match=message):
            defined(Exactness.EXACT_ON_DOMAIN)
        with pytest.raises(TypeError, match=message):
            defined(Exactness.EXACT_ON_DOMAIN, budget=lambda self: BUDGET)

    def test_with_a_declaration_both_are_defined(self) -> None:
        assert defined(Exactness.APPROXIMATE, budget=lambda self: BUDGET)().budget() is BUDGET
        domain = defined(Exactness.EXACT_ON_DOMAIN, domain=lambda self, program: EVERYWHERE)().domain
        assert domain(None) is EVERYWHERE  # type: ignore[arg-type]  # no program is needed here

    def test_a_declaration_may_be_inherited(self) -> None:
        parent = defined(Exactness.APPROXIMATE, budget=lambda self: BUDGET)
        child: type[RewritePass] = type("Child", (parent,), {})
        assert child().budget() is BUDGET

    def test_a_class_without_exactness_may_declare_later(self) -> None:
        class Unfinished(RewritePass[fx.Node]):
            """What several approximations share."""

        with pytest.raises(TypeError, match="declares no budget"):
            type("Finished", (Unfinished,), members(Exactness.APPROXIMATE))

    def test_a_budget_may_come_from_an_option(self) -> None:
        class Rounding(RewritePass[fx.Node]):
            exactness: ClassVar[Exactness] = Exactness.APPROXIMATE
            decibels: float = 40.0

            def check(self, site: Site) -> fx.Node:
                return site.node

            def rewrite(self, edit: Edit, plan: fx.Node) -> str:
                return "nothing"

            def budget(self) -> Budget:
                return Budget(min_snr_db=self.decibels)

        assert Rounding(decibels=20.0).budget() == Budget(min_snr_db=20.0)

    @pytest.mark.parametrize("exactness", [Exactness.BITWISE, Exactness.EXACT])
    def test_others_have_neither(self, exactness: Exactness, program: Program) -> None:
        exact = defined(exactness)()
        with pytest.raises(InternalError, match=f"planted is {exactness.value} and has no budget"):
            exact.budget()
        with pytest.raises(InternalError, match=f"planted is {exactness.value} and has no domain"):
            exact.domain(program)

    @pytest.fixture
    def program(self) -> Program:
        return flowopt.capture(torch.nn.ReLU().eval(), (torch.zeros(2, 3),))


class TestBudget:
    def test_limits_something(self) -> None:
        message = "a budget sets at least one of min_snr_db, min_agreement, max_relative and cast"
        with pytest.raises(ValueError, match=message):
            Budget()
        with pytest.raises(ValueError, match=message):
            Budget(cast_factor=3.0)

    @pytest.mark.parametrize("share", [99.5, -0.1, float("nan")])
    def test_agreement_is_a_share(self, share: float) -> None:
        with pytest.raises(ValueError, match="is a share between 0 and 1, such as 0.995"):
            Budget(min_agreement=share)

    def test_a_cast_is_to_a_floating_dtype(self) -> None:
        with pytest.raises(ValueError, match="cast=torch.int8 is no floating dtype"):
            Budget(cast=torch.int8)

    def test_a_cast_may_have_twice_the_error_by_default(self) -> None:
        assert Budget(cast=torch.float16).cast_factor == 2.0

    def test_is_frozen(self) -> None:
        with pytest.raises(dataclasses.FrozenInstanceError):
            BUDGET.min_snr_db = 1.0  # type: ignore[misc]  # that is the test


@pytest.mark.parametrize("name", ["Budget", "Domain"])
def test_what_a_pass_declares_is_public(name: str) -> None:
    assert name in flowopt.__all__
    assert getattr(flowopt, name) is globals()[name]
