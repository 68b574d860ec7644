"""Cases that replace a value inside the graph: which passes they can judge."""

from collections.abc import Container

from torch import fx

from flowopt.pipeline.instrument import PassRun
from flowopt.verification.inputs.cases import Case
from flowopt.verification.sites.region import Regions
from flowopt.verification.sites.site_check import whole_claims


def reaches(run: PassRun, case: Case) -> bool:
    """Whether what a case puts in the place of nodes reaches all that a pass made.

    It does not where the pass removed such a node, or reads what lies before it: an embedding that took in what
    followed it computes from the ids, and knows nothing of the numbers that the case put behind them. Nor does it where
    the node took the place of an equal one, for which the case has put nothing.
    """
    if not case.overrides:
        return True
    before, after = ({n.name: n for n in p.graph.nodes} for p in (run.before, run.after))
    if not case.overrides.keys() <= after.keys():
        return False
    replaced = [before[name] for name in case.overrides if name in before]
    hidden = {n.name for one in replaced for n in _sources(one)}
    regions = Regions(run.before)
    for _, claim in whole_claims(run.application, after):
        if claim.old not in before:
            continue
        is_behind = _is_behind(before[claim.old], case.overrides)
        if is_behind != _is_behind(after[claim.new], case.overrides):
            return False
        if not is_behind:
            continue
        if regions.of(claim.old, after[claim.new]).shared & hidden:
            return False
    return True


def _is_behind(node: fx.Node, names: Container[str]) -> bool:
    return any(one.name in names for one in (node, *_sources(node)))


def _sources(node: fx.Node) -> set[fx.Node]:
    """All nodes from which a node is computed."""
    found: set[fx.Node] = set()
    pending = list(node.all_input_nodes)
    while pending:
        current = pending.pop()
        if current not in found:
            found.add(current)
            pending.extend(current.all_input_nodes)
    return found
