"""Passes that change the function, or go wrong about it honestly: verification and the assertions must see them."""

from typing import Any, ClassVar

import torch
from torch import fx

from flowopt.rewrite import Edit, Exactness, RewritePass, Site
from flowopt.rewrite.budget import Budget
from tests.testing.negations import RemoveNegations

_aten = torch.ops.aten


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


class RoundsTwice(RemoveNegations):
    """Right, with two roundings where there was none."""

    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        third = edit.call(_aten.mul.Tensor, plan, 1.0 / 3.0)
        edit.replace(edit.anchor, edit.call(_aten.mul.Tensor, third, 3.0))
        return "removed"


class WithinItsBudget(OffByOnePercent):
    exactness: ClassVar[Exactness] = Exactness.APPROXIMATE

    def budget(self) -> Budget:
        return Budget(min_snr_db=35.0)  # 1 % is 40 dB; a bias stays exact


class BeyondItsBudget(WithinItsBudget):
    def budget(self) -> Budget:
        return Budget(min_snr_db=60.0)


class SwallowsNan(RemoveNegations):
    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        edit.replace(edit.anchor, edit.call(_aten.nan_to_num.default, plan, 0.0))
        return "removed"


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


class PlansWithTensors(RemoveNegations):
    def check(self, site: Site) -> Any:
        return super().check(site), torch.ones(1)

    def rewrite(self, edit: Edit, plan: Any) -> str:
        return super().rewrite(edit, plan[0])


class FiresForEver(RemoveNegations):
    """Right, but leaves its own pattern behind."""

    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        edit.replace(edit.anchor, edit.call(_aten.neg.default, edit.call(_aten.neg.default, plan)))
        return "removed and put back"


class RefusesEverything(RemoveNegations):
    def check(self, site: Site) -> fx.Node:
        site.refuse("post-norm", "not today")


class RefusesTwoWays(RemoveNegations):
    def check(self, site: Site) -> fx.Node:
        site.refuse("post-norm" if site.node.name == "neg" else "not-constant", "not today")


class RefusesWithoutMessage(RemoveNegations):
    def check(self, site: Site) -> fx.Node:
        site.refuse("post-norm", "")


class FindsNoSite(RemoveNegations):
    anchors: ClassVar[tuple[Any, ...]] = ()


class CrashesInSites(RemoveNegations):
    def sites(self, program: Any) -> Any:
        raise ZeroDivisionError("in sites")


class CrashesInCheck(RemoveNegations):
    def check(self, site: Site) -> fx.Node:
        raise ZeroDivisionError("in check")


class CrashesInRewrite(RemoveNegations):
    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        raise ZeroDivisionError("in rewrite")
