"""Rows of the mutation score: wrong rewrites that the verifier catches, beside what other rules catch."""

from functools import cache

from tests.goals.row import Measured, Row
from tests.mutation.score import Score, score

_MUTANTS, _KINDS, _MOST_EXCUSED = 400, 40, 0.05


@cache
def _score() -> Score:
    return score()


def _mutants() -> Measured:
    found = _score()
    total, excused, missed = len(found.judged), len(found.excused), found.missed
    is_met = not missed and total >= _MUTANTS and found.kinds >= _KINDS and excused <= _MOST_EXCUSED * total
    by_gate = ", ".join(f"{gate} {count}" for gate, count in found.by_gate().most_common())
    details = (
        f"caught first by {by_gate}",
        *(f"missed: {j.program} {j.kind} at {j.node}" for j in missed),
        *(f"excused: {j.program} {j.kind} at {j.node}: {j.excuse}" for j in found.excused),
    )
    return Measured(f"{found.caught} of {total} caught, {found.kinds} kinds, {excused} excused", is_met, details)


def _peers() -> Measured:
    found = _score()
    total = len(found.judged) - len(found.excused)
    ours = len(found.missed)
    rules = (("flowopt", ours), *found.misses_of_peers().items())
    details = tuple(f"{name}: {count} of {total} missed ({count / total:.0%})" for name, count in rules)
    best = min(count for _, count in rules[1:])
    return Measured(f"{ours} missed here, {best} by the best of {len(rules) - 1} peers", ours <= best, details)


ROWS = (
    Row(
        "verify.mutants",
        f"at least {_MUTANTS} of {_KINDS} kinds, all caught but the excused, at most {_MOST_EXCUSED:.0%}",
        _mutants,
        is_long=True,
    ),
    Row("verify.peers", "their misses beside ours", _peers, is_long=True),
)
