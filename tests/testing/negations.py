"""A model with something to remove and a weight to damage, and the pass that removes it rightly."""

from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn

from flowopt.rewrite import Edit, Exactness, RewritePass, Site
from tests.zoo.models import randomise

_aten = torch.ops.aten
BEFORE = {"aten.neg": 2, "aten.linear": 1}
AFTER = {"aten.neg": 0, "aten.linear": 1}
X = torch.randn(2, 4, generator=torch.Generator().manual_seed(2))


class Negations(nn.Module):
    """Two negations in a row, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        projected: Tensor = self.fc(x.neg().neg())
        return projected


class RemoveNegations(RewritePass[fx.Node]):
    """The right pass: -(-x) is x. Each wrong one differs in what its name says."""

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


def negations() -> nn.Module:
    """The model with random weights."""
    module = Negations()
    randomise(module, seed=1)
    return module.eval()
