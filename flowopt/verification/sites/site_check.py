"""Check every claim of a rewrite at its own boundary, with adversarial tensors.

A whole model hides much: a ReLU behind the site, a softmax that saturates. At the site nothing does. Both sides of
a claim get the same tensors at the roots of its region.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, fx

from flowopt.ir.constants import node_values
from flowopt.ir.evaluate import RUN_ERRORS, Value, evaluate
from flowopt.ir.float64 import raised_tensor
from flowopt.ir.metadata import recorded_tensor
from flowopt.pipeline.instrument import PassRun
from flowopt.program.program import Program
from flowopt.report.verdict import Finding
from flowopt.rewrite.base import Exactness
from flowopt.rewrite.driver import Application
from flowopt.rewrite.edit import Claim
from flowopt.verification.classes.bits import compare_bits
from flowopt.verification.ensemble import copies_for, moved_by_one_ulp
from flowopt.verification.evidence import OutputEvidence, scattered
from flowopt.verification.gates import compare, with_pooled_rows
from flowopt.verification.inputs.cases import Case
from flowopt.verification.levels import Level
from flowopt.verification.limits import site_limits
from flowopt.verification.running import first_line, moved_reader, raised_reader
from flowopt.verification.sites.region import Region, Regions
from flowopt.verification.sites.site_regimes import (
    ALIKE_ROWS,
    INFINITIES,
    MODEL_VALUES,
    OTHER_SIZES,
    SIGNED_ZEROS,
    site_regimes,
    site_values,
)

Values = Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Twins:
    """The float64 twin before and after a pass."""

    before: Program
    after: Program


def check_sites(run: PassRun, twins: Twins, cases: Sequence[Case], seed: int, level: Level) -> Iterator[Finding | str]:
    """Compare both sides of every claim; yields findings, and a note for each claim that cannot be checked.

    Args:
        run: the pass, with the program before and after it.
        twins: the float64 twin before and after the pass.
        cases: their sizes are those of the boundary tensors; what is made of their integers keeps its values.
        seed: of the tensors.
        level: more kinds of numbers at ``full``.
    """
    values = (recorded_tensor(node) for node in run.before.graph.nodes)
    first, others = site_regimes(level, {value.dtype for value in values if value is not None}), OTHER_SIZES
    if run.rewrite_pass.exactness is Exactness.EXACT_ON_DOMAIN:
        first = others = (MODEL_VALUES,)
    elif run.rewrite_pass.exactness is Exactness.BITWISE:
        first = tuple(dict.fromkeys((*first, SIGNED_ZEROS)))
    checks = [_Check(run, twins, case, seed, first if at == 0 else others) for at, case in enumerate(cases)]
    for anchor, claim in whole_claims(run.application, checks[0].sides[1]):
        for check in checks:
            yield from check.claim(anchor, claim)


def whole_claims(application: Application, after: Mapping[str, fx.Node]) -> Iterator[tuple[str, Claim]]:
    """Claims whose new value is there after the pass; one that was replaced again leads on to what replaced it.

    A new value that nobody reads any more is left out: the claim that took its readers covers it.
    """
    replaced = {c.old: c.new for step in application.steps for c in step.claims}
    for step in application.steps:
        for claim in step.claims:
            new = claim.new
            while new not in after and new in replaced:
                new = replaced[new]
            if new in after:
                yield step.anchor, Claim(claim.old, new)


@final
class _Check:
    """What all claims of one pass share."""

    def __init__(self, run: PassRun, twins: Twins, case: Case, seed: int, kinds: Sequence[str]) -> None:
        self.run, self.twins, self.case, self.seed, self._kinds = run, twins, case, seed, kinds
        programs = (run.before, run.after, twins.before, twins.after)
        self.sides: tuple[dict[str, fx.Node], ...] = tuple({n.name: n for n in p.graph.nodes} for p in programs)
        self._regions = Regions(run.before)
        self._kept: dict[str, Tensor] | None = None

    def claim(self, anchor: str, claim: Claim) -> Iterator[Finding | str]:
        """Findings of one claim, or the note why there can be none."""
        if claim.old not in self._regions.nodes:
            return  # made by this pass: a step on the way of another claim
        region = self._regions.of(claim.old, self.sides[1][claim.new])
        for name in self._kinds:
            try:
                roots = self._root_values(region, name)
                evidence, shared = self._original(region, roots)
                twin_oracle, twin_shared = self._twin_original(region, roots)
            except RUN_ERRORS as error:
                yield f"site {anchor}: not checked alone: {first_line(error)}"
                return
            try:
                candidate = self._new_value(claim, shared, raised=False)
                twin = self._new_value(claim, twin_shared, raised=True)
            except RUN_ERRORS as error:
                yield Finding("site", anchor, name, f"structure: it does not run: {first_line(error)}")
                return
            yield from self._compared(anchor, name, evidence, candidate, twin, twin_oracle)

    def _compared(
        self, anchor: str, name: str, evidence: OutputEvidence, candidate: Tensor, twin: Tensor, twin_oracle: Tensor
    ) -> Iterator[Finding]:
        result = compare(
            anchor,
            name,
            with_pooled_rows(evidence) if name in ALIKE_ROWS else evidence,
            candidate,
            twin,
            twin_oracle=twin_oracle,
            limits=site_limits(evidence.original.dtype),
            detailed=False,
            skip_weak_rows=True,
        )
        findings = list(result.findings)
        if name in INFINITIES:
            findings = [f for f in findings if "swallowed" in f.message]
            findings += _negated(anchor, name, evidence.original, candidate)
        if self.run.rewrite_pass.exactness is Exactness.BITWISE:
            findings += compare_bits(anchor, name, evidence.original, candidate)
        yield from (Finding("site", f.where, f.case, f"{f.gate}: {f.message}") for f in findings)

    def _root_values(self, region: Region, regime: str) -> dict[str, Value]:
        program, generator = self.run.before, torch.Generator().manual_seed(self.seed)
        made: dict[str, Value] = {}
        for node in region.roots:
            value = recorded_tensor(node)
            if regime != MODEL_VALUES and node in region.free and value is not None:
                shape = program.concrete_shape(value, self.case.sizes)
                made[node.name] = site_values(regime, shape, generator, value.dtype)
            elif value is not None:
                made[node.name] = self._kept_values()[node.name]
            else:
                made[node.name] = program.concrete_size(node.meta["val"], self.case.sizes)
        return made

    def _kept_values(self) -> dict[str, Tensor]:
        """What the model computes from the case's integers, before the pass; of a domain, all that it computes."""
        if self._kept is None:
            kept: dict[str, Tensor] = {}

            def observe(node: fx.Node, value: Value) -> None:
                if isinstance(value, Tensor) and (MODEL_VALUES in self._kinds or not self._regions.is_activation(node)):
                    kept[node.name] = value

            program = self.run.before
            evaluate(program.graph, program.read, self.case.inputs, observe=observe)
            self._kept = kept
        return self._kept

    def _original(self, region: Region, roots: Values) -> tuple[OutputEvidence, dict[str, Value]]:
        """The old side with its oracle and ensemble, and the values that the new side reads."""
        before, nodes = self.run.before, self._regions.nodes
        original = self._old_values(region, nodes, before.read, roots, raised=False)
        oracle = self._old_values(region, nodes, raised_reader(before), _raised(roots), raised=True)
        moved = (
            self._old_values(
                region, nodes, moved_reader(before, copy, self.seed), self._moved(roots, copy), raised=False
            )
            for copy in range(copies_for(original[region.old.name], at_site=True))
        )
        old = region.old.name
        evidence = scattered(oracle[old], original[old], (m[old] for m in moved))
        return evidence, {name: original[name] for name in region.shared}

    def _twin_original(self, region: Region, roots: Values) -> tuple[Tensor, dict[str, Value]]:
        # Folds of earlier passes are rounded in the program but not in its twin.
        twin = self.twins.before
        values = self._old_values(region, self.sides[2], twin.read, _raised(roots), raised=True)
        return values[region.old.name], {name: values[name] for name in region.shared}

    def _old_values(
        self,
        region: Region,
        nodes: Mapping[str, fx.Node],
        read: Callable[[str], Tensor],
        roots: Values,
        *,
        raised: bool,
    ) -> dict[str, Value]:
        wanted = [nodes[name] for name in (region.old.name, *region.shared)]
        values = node_values(wanted, read, {nodes[name]: value for name, value in roots.items()}, raised=raised)
        return {node.name: values[node] for node in wanted}

    def _new_value(self, claim: Claim, shared: Values, *, raised: bool) -> Tensor:
        nodes, program = (self.sides[3], self.twins.after) if raised else (self.sides[1], self.run.after)
        new = nodes[claim.new]
        given = {nodes[name]: value for name, value in shared.items()}
        result: Tensor = node_values((new,), program.read, given, raised=raised)[new]
        return result

    def _moved(self, roots: Values, copy: int) -> dict[str, Value]:
        return {
            name: moved_by_one_ulp(name, value, copy, self.seed) if isinstance(value, Tensor) else value
            for name, value in roots.items()
        }


def _negated(anchor: str, case: str, before: Tensor, after: Tensor) -> list[Finding]:
    if not before.is_floating_point() or before.shape != after.shape:
        return []
    count = int((before.isinf() & (after == -before)).sum())
    return [Finding("specials", anchor, case, f"negated: {count} infinities changed their sign")] if count else []


def _raised(roots: Values) -> dict[str, Value]:
    return {name: raised_tensor(value) if isinstance(value, Tensor) else value for name, value in roots.items()}
