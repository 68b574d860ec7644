"""The cases whose sizes and integers the boundary of a site takes."""

from typing import Final

from flowopt.analysis.activation_bytes import activation_bytes
from flowopt.program.program import Program
from flowopt.verification.classes.on_domain import EDGE
from flowopt.verification.evidence import Evidence
from flowopt.verification.inputs.cases import Case
from flowopt.verification.levels import Level

# Sites are checked one by one: a size that is large for the whole model would be paid for at each of them.
_MOST_BYTES: Final = 64 << 20


def site_cases(program: Program, evidence: Evidence, level: Level) -> tuple[Case, ...]:
    """The odd case where the model runs it, else the first that it runs; the edge of a domain beside it.

    At level full one case of every other size of the battery too: what hides behind a norm at the end of the model
    shows at the site, and a rewrite may be wrong at one size alone.
    """
    cases = [e.case for e in evidence.cases]
    first = next((case for case in cases if case.name == "prime"), None) or next(iter(cases), None)
    if first is None:
        return ()
    chosen = {_sizes(first): first}
    for case in cases if level == "full" else ():
        if _sizes(case) not in chosen and activation_bytes(program, case.sizes, raised=True) <= _MOST_BYTES:
            chosen[_sizes(case)] = case
    edges = [c for c in cases if c.name.startswith(EDGE) and c not in chosen.values()]
    return (*chosen.values(), *edges)


def _sizes(case: Case) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(case.sizes.items()))
