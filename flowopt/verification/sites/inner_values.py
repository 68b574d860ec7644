"""Cases that replace a value inside the graph: which passes they can judge."""

from flowopt.analysis.ancestors import Ancestors
from flowopt.pipeline.instrument import PassRun
from flowopt.verification.inputs.cases import Case
from flowopt.verification.sites.region import shared_names
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
    old, new = Ancestors(run.before.graph), Ancestors(run.after.graph)
    replaced = [before[name] for name in case.overrides if name in before]
    replaced_bits = old.bits(replaced), new.bits(after[name] for name in case.overrides)
    hidden = {n.name for n in old.last_first(old.of_any(replaced))}
    for _, claim in whole_claims(run.application, after):
        if claim.old not in before:
            continue
        is_behind = bool(old.with_own(before[claim.old]) & replaced_bits[0])
        if is_behind != bool(new.with_own(after[claim.new]) & replaced_bits[1]):
            return False
        if is_behind and not hidden.isdisjoint(shared_names(after[claim.new], before)):
            return False
    return True
