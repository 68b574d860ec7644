"""One-line passes of the classes that declare something: a budget, or a domain."""

from collections.abc import Callable
from typing import Any

from torch import fx

from flowopt.rewrite import Budget, Domain, Edit, Exactness, RewritePass, Site
from tests.verification.substitute import Build


def approximate(anchor: Any, build: Build, budget: Budget) -> RewritePass:
    """A pass that claims ``build`` is within ``budget`` of every ``anchor``."""
    return _declared(Exactness.APPROXIMATE, anchor, build, budget=lambda self: budget)


def on_domain(anchor: Any, build: Build, domain: Domain) -> RewritePass:
    """A pass that claims ``build`` is exact on ``domain``."""
    return _declared(Exactness.EXACT_ON_DOMAIN, anchor, build, domain=lambda self, program: domain)


def _declared(exactness: Exactness, anchor: Any, build: Build, **declaration: Callable[..., Any]) -> RewritePass:
    def check(self: Any, site: Site) -> fx.Node:
        site.require("rewritten_by" not in site.node.meta, "already-rewritten", "made by this pass")
        return site.node

    def rewrite(self: Any, edit: Edit, plan: fx.Node) -> str:
        edit.replace(plan, build(edit, plan))
        return "substituted"

    members = {"exactness": exactness, "anchors": (anchor,), "check": check, "rewrite": rewrite, **declaration}
    made: RewritePass = type("Declared", (RewritePass,), members)()
    return made
