"""The old side of claims in several regimes: its values, its oracle, and how far it scatters."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from torch import Tensor, fx

from flowopt.ir.constants import needed_nodes, node_values_together
from flowopt.ir.evaluate import Value
from flowopt.ir.float64 import raised_tensor
from flowopt.program.program import Program
from flowopt.verification.ensemble import copies_for, moved_by_one_ulp
from flowopt.verification.output_evidence import OutputEvidence, scattered, widened
from flowopt.verification.running import moved_reader
from flowopt.verification.sites.claim_group import ClaimGroup

Values = Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Original:
    """The old side of a group of claims in one regime; by name.

    Attributes:
        evidence: of the replaced values.
        values: the replaced values and those that the new sides read.
        twin: the same in float64.
    """

    evidence: Mapping[str, OutputEvidence]
    values: Values
    twin: Values


@final
class OldSide:
    """Evaluates regions of the program before a pass, and of its float64 twin."""

    def __init__(self, program: Program, twin: Program, seed: int) -> None:
        self._program, self._twin, self._seed = program, twin, seed
        self._nodes, self._twin_nodes = ({n.name: n for n in p.graph.nodes} for p in (program, twin))

    def known(self, group: ClaimGroup, roots: Sequence[Values]) -> list[Original]:
        """What is known of a group, per set of values at its roots; a stored tensor is raised or moved once for all.

        Raises:
            Exception: what an operator raised, one of ``RUN_ERRORS``.
        """
        program, olds, wanted = self._program, group.olds, tuple({*group.olds, *group.shared})
        raised = [{name: _raised(value) for name, value in one.items()} for one in roots]
        originals = self._values(wanted, self._nodes, program.read, roots)
        oracles = self._values(wanted, self._nodes, program.tensors.__getitem__, raised, is_raised=True)
        evidence = [
            {old: scattered(oracle[old], one[old], ()) for old in olds}
            for one, oracle in zip(originals, oracles, strict=True)
        ]
        copies = {old: max(copies_for(one[old], at_site=True) for one in originals) for old in olds}
        for copy in range(max(copies.values())):
            scattering = tuple(old for old in olds if copy < copies[old])
            moved = [{name: self._moved(name, value, copy) for name, value in one.items()} for one in roots]
            found = self._values(scattering, self._nodes, moved_reader(program, copy, self._seed), moved)
            for known, one in zip(evidence, found, strict=True):
                known.update({old: widened(known[old], one[old]) for old in scattering})
        twins = oracles
        if self._has_folds(wanted, group):
            twins = self._values(wanted, self._twin_nodes, self._twin.tensors.__getitem__, raised, is_raised=True)
        return [Original(*each) for each in zip(evidence, originals, twins, strict=True)]

    def _has_folds(self, wanted: Sequence[str], group: ClaimGroup) -> bool:
        """Folds of earlier passes are rounded in the program but not in its twin."""
        needed = needed_nodes([self._nodes[name] for name in wanted], set(group.roots))
        stored = {str(n.target) for n in needed if n.op == "get_attr"}
        return any(self._program.tensors[name] is not self._twin.tensors.get(name) for name in stored)

    def _values(
        self,
        names: Sequence[str],
        nodes: Mapping[str, fx.Node],
        read: Callable[[str], Tensor],
        roots: Sequence[Values],
        *,
        is_raised: bool = False,
    ) -> list[dict[str, Value]]:
        wanted = [nodes[name] for name in names]
        givens = [{nodes[name]: value for name, value in one.items()} for one in roots]
        found = []
        for values in node_values_together(wanted, read, givens, raised=is_raised):
            if isinstance(values, Exception):
                raise values
            found.append({node.name: values[node] for node in wanted})
        return found

    def _moved(self, name: str, value: Value, copy: int) -> Value:
        return moved_by_one_ulp(name, value, copy, self._seed) if isinstance(value, Tensor) else value


def _raised(value: Value) -> Value:
    return raised_tensor(value) if isinstance(value, Tensor) else value
