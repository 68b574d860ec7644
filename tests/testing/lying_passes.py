"""Passes that break a promise of passes: about what they changed, about the graph, about whose tensors they write."""

from typing import Any

import torch
from torch import fx

from flowopt.rewrite import Edit, Site
from tests.testing.negations import RemoveNegations

_aten = torch.ops.aten


class RemovesNothing(RemoveNegations):
    """Reports a rewrite and does none."""

    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        return "removed"


class ClaimsTheSame(RemoveNegations):
    """Claims a replacement that changes nothing: the anchor by itself."""

    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        edit.replace(edit.anchor, edit.anchor)
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


class ChangesTheType(RemoveNegations):
    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        edit.replace(edit.anchor, edit.call(_aten.to.dtype, plan, torch.float64))
        return "removed"


class CallsInPlace(RemoveNegations):
    """The graph is no longer functional."""

    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        edit.replace(edit.anchor, edit.call(_aten.neg_.default, edit.call(_aten.neg.default, plan)))
        return "removed"


class RecordsNothing(RemoveNegations):
    """A node of its own, without the recorded type that later passes read."""

    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        copy = edit.call(_aten.clone.default, edit.call(_aten.clone.default, plan))
        edit.replace(edit.anchor, copy)
        del copy.all_input_nodes[0].meta["val"]
        return "removed"


class ReadsTooEarly(RemoveNegations):
    """The new node stands behind its reader."""

    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        with edit.before(edit.program.graph.output_node()):
            copy = edit.call(_aten.clone.default, plan)
        edit.replace(edit.anchor, copy)
        return "removed"


class ReturnsMore(RemoveNegations):
    """The model returns one value more."""

    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        edit.replace(edit.anchor, plan)
        output = edit.program.graph.output_node()
        returned: Any = output.args[0]
        output.args = ((*returned, plan),)
        return "removed"


class RenamesTheInput(RemoveNegations):
    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        edit.replace(edit.anchor, plan)
        edit.program.inputs = ()
        return "removed"


class RefusesWithAnUnknownCode(RemoveNegations):
    def check(self, site: Site) -> fx.Node:
        site.refuse("no-such-code", "not today")


class LiesTheSecondTime(RemoveNegations):
    """Right, and on what it left behind it reports a rewrite that it does not do."""

    def check(self, site: Site) -> fx.Node:
        return site.node if site.node.meta.get("rewritten_by") else super().check(site)

    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        if plan is not edit.anchor:
            edit.replace(edit.anchor, edit.call(_aten.neg.default, edit.call(_aten.neg.default, plan)))
        return "removed and put back"


class WritesInPlace(RemoveNegations):
    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        edit.program.tensors["fc.weight"].mul_(1.0)
        return super().rewrite(edit, plan)


class WritesUnseen(RemoveNegations):
    """Through NumPy, where torch does not count versions; a zero becomes -0.0, which no output shows."""

    tensor: str = "fc.bias"

    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        edit.program.tensors[self.tensor].numpy()[0] = -0.0
        return super().rewrite(edit, plan)


class WritesUnseenTheSecondTime(WritesUnseen):
    """Right; when nothing is left to remove, it writes."""

    def check(self, site: Site) -> fx.Node:
        if site.node.meta.get("rewritten_by"):
            site.program.tensors[self.tensor].numpy()[0] = -0.0
            site.refuse("already-canonical", "done")
        return super().check(site)

    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        edit.replace(edit.anchor, edit.call(_aten.neg.default, edit.call(_aten.neg.default, plan)))
        return "removed and put back"


class WritesWhileRefusing(WritesUnseen):
    def check(self, site: Site) -> fx.Node:
        site.program.tensors[self.tensor].numpy()[0] = -0.0
        site.refuse("post-norm", "not today")
