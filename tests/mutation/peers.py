"""How others would judge a rewrite: one random sample, and a rule.

The rules and their defaults: ``torch.testing.assert_close``; ``torch._dynamo.utils.same`` with a float64 reference and
the tolerance 1e-4 of its benchmarks; cosine similarity of at least 0.997, as Polygraphy asks for.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch._dynamo.utils import same

from flowopt.ir.evaluate import RUN_ERRORS
from flowopt.program.program import Program
from flowopt.verification.inputs.case import Case
from flowopt.verification.inputs.cases import case_of
from flowopt.verification.inputs.regimes import normal
from flowopt.verification.running import run_case

Outputs = Mapping[str, Tensor]
_COSINE = 0.997


class Sample:
    """One random input of the traced sizes, and what the original makes of it."""

    def __init__(self, program: Program) -> None:
        sizes = {d.name: d.traced for d in program.dims}
        self._case: Case = case_of(program, "traced", sizes, normal, seed=0)
        self._wanted = run_case(program, self._case)
        self._precise = run_case(program, self._case, raised=True)

    def missed_by(self, mutated: Program) -> tuple[str, ...]:
        """Names of the rules that find nothing wrong."""
        try:
            found = run_case(mutated, self._case)
        except RUN_ERRORS:
            return ()
        if any(found[name].shape != wanted.shape for name, wanted in self._wanted.items()):
            return ()
        return tuple(name for name, accepts in PEERS.items() if accepts(self._wanted, self._precise, found))


def _assert_close(wanted: Outputs, precise: Outputs, found: Outputs) -> bool:
    try:
        torch.testing.assert_close(dict(found), dict(wanted), equal_nan=True)
    except AssertionError:
        return False
    return True


def _same(wanted: Outputs, precise: Outputs, found: Outputs) -> bool:
    def quiet(*_: object) -> None:
        """Its log lines would drown ours."""

    return all(
        bool(same(wanted[n], found[n], fp64_ref=precise[n], tol=1e-4, equal_nan=True, log_error=quiet)) for n in wanted
    )


def _cosine(wanted: Outputs, precise: Outputs, found: Outputs) -> bool:
    for name, one in wanted.items():
        if not one.is_floating_point():
            if not torch.equal(one, found[name]):
                return False
            continue
        left, right = (t.double().flatten() for t in (one, found[name]))
        if not float(torch.cosine_similarity(left, right, dim=0)) >= _COSINE:
            return False
    return True


PEERS: dict[str, Callable[[Outputs, Outputs, Outputs], bool]] = {
    "assert_close": _assert_close,
    "dynamo same": _same,
    "cosine 0.997": _cosine,
}
