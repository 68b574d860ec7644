"""The old side of a claim in several regimes: its values, its oracle, and how far it scatters."""

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
from flowopt.verification.running import moved_reader, raised_reader
from flowopt.verification.sites.region import Region

Values = Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Original:
    """The old side in one regime.

    Attributes:
        evidence: of the replaced value.
        values: the replaced value and those that the new side reads, by name.
        twin: the same in float64.
    """

    evidence: OutputEvidence
    values: Values
    twin: Values


@final
class OldSide:
    """Evaluates regions of the program before a pass, and of its float64 twin."""

    def __init__(self, program: Program, twin: Program, seed: int) -> None:
        self._program, self._twin, self._seed = program, twin, seed
        self._nodes, self._twin_nodes = ({n.name: n for n in p.graph.nodes} for p in (program, twin))

    def known(self, region: Region, roots: Sequence[Values]) -> list[Original]:
        """What is known of a region, per set of values at its roots; a stored tensor is raised or moved once for all.

        Raises:
            Exception: what an operator raised, one of ``RUN_ERRORS``.
        """
        program, old = self._program, region.old.name
        raised = [{name: _raised(value) for name, value in one.items()} for one in roots]
        originals = self._values(region, self._nodes, program.read, roots)
        oracles = self._values(region, self._nodes, raised_reader(program), raised, is_raised=True)
        found = [scattered(oracle[old], one[old], ()) for one, oracle in zip(originals, oracles, strict=True)]
        for copy in range(max(copies_for(one[old], at_site=True) for one in originals)):
            moved = [{name: self._moved(name, value, copy) for name, value in one.items()} for one in roots]
            copies = self._values(region, self._nodes, moved_reader(program, copy, self._seed), moved)
            found = [widened(known, one[old]) for known, one in zip(found, copies, strict=True)]
        twins = oracles
        if self._has_folds(region):
            twins = self._values(region, self._twin_nodes, self._twin.read, raised, is_raised=True)
        return [Original(*each) for each in zip(found, originals, twins, strict=True)]

    def _has_folds(self, region: Region) -> bool:
        """Folds of earlier passes are rounded in the program but not in its twin."""
        wanted = [self._nodes[name] for name in (region.old.name, *region.shared)]
        stored = {str(n.target) for n in needed_nodes(wanted, set(region.roots)) if n.op == "get_attr"}
        return any(self._program.tensors[name] is not self._twin.tensors.get(name) for name in stored)

    def _values(
        self,
        region: Region,
        nodes: Mapping[str, fx.Node],
        read: Callable[[str], Tensor],
        roots: Sequence[Values],
        *,
        is_raised: bool = False,
    ) -> list[dict[str, Value]]:
        wanted = [nodes[name] for name in (region.old.name, *region.shared)]
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
