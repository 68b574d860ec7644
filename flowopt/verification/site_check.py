"""Check every claim of a rewrite at its own boundary, with adversarial tensors.

A whole model hides much: a ReLU behind the site, a softmax that saturates. At the site nothing does. The region
of a claim ends at the values that the new nodes read and that existed before; both sides get the same tensors there.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, fx

from flowopt.ir.constants import is_parameter_only, node_value
from flowopt.ir.float64 import raised_tensor
from flowopt.ir.metadata import recorded_tensor
from flowopt.pipeline.instrument import PassRun
from flowopt.program.program import Program
from flowopt.report.verdict import Finding
from flowopt.rewrite.edit import Claim
from flowopt.verification import regimes
from flowopt.verification.ensemble import COPIES
from flowopt.verification.evidence import OutputEvidence, moved_reader, raised_reader
from flowopt.verification.gates import SITE_LIMITS, compare

_REGIMES = {"normal": regimes.normal, "mixed-rows": regimes.mixed_rows, "large": regimes.large_normal}


def check_sites(run: PassRun, twin: Program, sizes: Mapping[str, int], seed: int) -> Iterator[Finding | str]:
    """Compare both sides of every claim; yields findings, and a note for each claim that cannot be checked.

    Args:
        run: the pass, with the program before and after it.
        twin: the float64 twin after the pass.
        sizes: free dimension to the size that the boundary tensors take.
        seed: of the tensors.
    """
    before = {n.name: n for n in run.before.graph.nodes}
    after = {n.name: n for n in run.after.graph.nodes}
    twins = {n.name: n for n in twin.graph.nodes}
    for step in run.application.steps:
        for claim in step.claims:
            # A later rewrite of the same pass may have replaced this one; its own claim then covers both.
            if claim.new not in after or claim.old not in before:
                continue
            region = _Region(run, before, after, twins, claim)
            obstacle = region.obstacle(sizes)
            if obstacle:
                yield f"site {step.anchor}: not checked alone: {obstacle}"
                continue
            yield from _check(step.anchor, region, run, twin, sizes, seed)


class _Region:
    """Both sides of a claim and the boundary where they start."""

    def __init__(
        self,
        run: PassRun,
        before: Mapping[str, fx.Node],
        after: Mapping[str, fx.Node],
        twins: Mapping[str, fx.Node],
        claim: Claim,
    ) -> None:
        self.old, self.new, self.twin = before[claim.old], after[claim.new], twins[claim.new]
        self._program = run.before
        cut = _new_boundary(self.new, before)
        self.boundary = _old_boundary(self.old, {before[n.name] for n in cut}) | {before[n.name] for n in cut}
        self._after, self._twins = after, twins

    def obstacle(self, sizes: Mapping[str, int]) -> str:
        """Why the region cannot be run alone, or an empty string."""
        for node in self.boundary:
            value = node.meta.get("val")
            if isinstance(value, Tensor):
                if not value.is_floating_point():
                    return f"{node.name} holds {value.dtype}"
                try:
                    self._program.concrete_shape(value, sizes)
                except TypeError:
                    return f"the shape of {node.name} depends on data"
            elif not isinstance(value, (int, torch.SymInt)):
                return f"{node.name} is no tensor"
        return ""

    def given(self, nodes: str, tensors: Mapping[str, Tensor | int]) -> dict[fx.Node, Tensor | int]:
        """Boundary values, keyed by the nodes of one side; values that the other side alone reads are left out."""
        side = {"old": {n.name: n for n in self.boundary}, "new": self._after, "twin": self._twins}[nodes]
        return {side[name]: value for name, value in tensors.items() if name in side}

    def values(
        self, regime: regimes.Regime, sizes: Mapping[str, int], generator: torch.Generator
    ) -> dict[str, Tensor | int]:
        """One value per boundary node."""
        made: dict[str, Tensor | int] = {}
        for node in sorted(self.boundary, key=lambda n: n.name):
            value = recorded_tensor(node)
            if value is not None:
                shape = self._program.concrete_shape(value, sizes)
                made[node.name] = regime(shape, generator).to(value.dtype)
            else:
                # Sizes are recomputed from the bound dimensions by the same substitution as shapes.
                made[node.name] = self._program.concrete_size(node.meta["val"], sizes)
        return made


def _new_boundary(new: fx.Node, before: Mapping[str, fx.Node]) -> set[fx.Node]:
    """Nodes that existed before the pass, where the walk back from the new value stops."""
    cut: set[fx.Node] = set()
    pending, seen = [new], {new}
    while pending:
        node = pending.pop()
        if node.name in before and node.op != "get_attr" and not is_parameter_only(node):
            cut.add(node)
            continue
        fresh = [n for n in node.all_input_nodes if n not in seen]
        seen.update(fresh)
        pending.extend(fresh)
    return cut


def _old_boundary(old: fx.Node, cut: set[fx.Node]) -> set[fx.Node]:
    """Values beside the cut that the old side reads too: whatever does not come from the cut is free."""
    derived = _descendants(cut)
    boundary: set[fx.Node] = set()
    pending, seen = ([] if old in cut else [old]), {old}
    while pending:
        node = pending.pop()
        for source in node.all_input_nodes:
            if source in seen or source in cut:
                continue
            seen.add(source)
            if source in derived or is_parameter_only(source):
                pending.append(source)
            else:
                boundary.add(source)
    return boundary


def _descendants(nodes: set[fx.Node]) -> set[fx.Node]:
    found: set[fx.Node] = set()
    pending = list(nodes)
    while pending:
        for user in pending.pop().users:
            if user not in found:
                found.add(user)
                pending.append(user)
    return found


def _check(
    site: str, region: _Region, run: PassRun, twin: Program, sizes: Mapping[str, int], seed: int
) -> Iterator[Finding]:
    for name, regime in _REGIMES.items():
        tensors = region.values(regime, sizes, torch.Generator().manual_seed(seed))
        raised = {n: raised_tensor(v) if isinstance(v, Tensor) else v for n, v in tensors.items()}
        given, given_raised = region.given("old", tensors), region.given("old", raised)
        original = node_value(region.old, run.before.read, given, raised=False)
        oracle = node_value(region.old, raised_reader(run.before), given_raised, raised=True)
        error = _error(original, oracle)
        for copy in range(COPIES):
            moved = node_value(region.old, moved_reader(run.before, copy, seed), given, raised=False)
            error = torch.maximum(error, _error(moved, oracle))
        candidate = node_value(region.new, run.after.read, region.given("new", tensors), raised=False)
        twin_value = node_value(region.twin, twin.read, region.given("twin", raised), raised=True)
        evidence = OutputEvidence(oracle, original, error if original.is_floating_point() else None)
        bitwise = run.rewrite_pass.exactness == "bitwise"
        result = compare(site, name, evidence, candidate, twin_value, limits=SITE_LIMITS, bitwise=bitwise)
        yield from (Finding("site", f.where, f.case, f"{f.gate}: {f.message}") for f in result.findings)


def _error(value: Tensor, oracle: Tensor) -> Tensor:
    error = (value.to(torch.float64) - oracle.to(torch.float64)).abs()
    return torch.where(torch.isfinite(error), error, 0.0)
