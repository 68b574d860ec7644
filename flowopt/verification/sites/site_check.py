"""Check every claim of a rewrite at its own boundary, with adversarial tensors.

A whole model hides much: a ReLU behind the site, a softmax that saturates. At the site nothing does. Both sides of
a claim get the same tensors at the roots of its region. Claims whose regions have the same roots are evaluated
together, and each is compared by itself.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Final, final

import torch
from torch import Tensor, fx

from flowopt.analysis.concrete_shapes import ConcreteShapes, recorded_tensors
from flowopt.ir.constants import node_values_together
from flowopt.ir.evaluate import RUN_ERRORS, Value, evaluate
from flowopt.ir.metadata import recorded_tensor
from flowopt.pipeline.instrument import PassRun
from flowopt.program.program import Program
from flowopt.report.verdict import Finding
from flowopt.rewrite.base import Exactness
from flowopt.rewrite.driver import Application
from flowopt.rewrite.edit import Claim
from flowopt.verification.classes.bits import compare_bits
from flowopt.verification.gates import compare, with_pooled_rows
from flowopt.verification.inputs.cases import Case
from flowopt.verification.levels import Level
from flowopt.verification.limits import site_limits
from flowopt.verification.running import first_line
from flowopt.verification.sites.claim_group import ClaimGroup, LocatedClaim, claim_groups
from flowopt.verification.sites.old_side import OldSide, Original, Values
from flowopt.verification.sites.pattern import pattern_of
from flowopt.verification.sites.region import Regions
from flowopt.verification.sites.site_regimes import (
    ALIKE_ROWS,
    AT_FIRST_ALIKE,
    INFINITIES,
    MODEL_VALUES,
    NAN,
    OTHER_SIZES,
    SIGNED_ZEROS,
    site_regimes,
    site_values,
)

_TOGETHER: Final = 6
# Bytes per element: the original, the oracle and the twin in float64, the own error, and a candidate and its twin.
_KEPT_BYTES: Final = 40


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
    regions = Regions(run.before)
    checks = [_Check(run, twins, case, seed, regions) for case in cases]
    after = checks[0].after
    located = _located(run, after, regions)
    for group in claim_groups(_with_kinds(located, after, first, level)):
        for at, check in enumerate(checks):
            yield from check.group(group if at == 0 else replace(group, kinds=others))


def _located(run: PassRun, after: Mapping[str, fx.Node], regions: Regions) -> Iterator[LocatedClaim]:
    for anchor, claim in whole_claims(run.application, after):
        # What this pass itself made is a step on the way of another claim.
        if claim.old in regions.nodes:
            yield LocatedClaim(anchor, claim, regions.of(claim.old, after[claim.new]))


def _with_kinds(
    located: Iterable[LocatedClaim], after: Mapping[str, fx.Node], kinds: Sequence[str], level: Level
) -> Iterator[tuple[LocatedClaim, Sequence[str]]]:
    """Every claim with its regimes at the first size."""
    seen: set[str] = set()
    for one in located:
        if not one.region.free:
            yield one, kinds[:1]  # constants and integers are the same in all
            continue
        pattern = pattern_of(one.region, after[one.claim.new])
        left_out = AT_FIRST_ALIKE if level == "quick" and pattern in seen else ()
        seen.add(pattern)
        yield one, [kind for kind in kinds if kind not in left_out]


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

    def __init__(self, run: PassRun, twins: Twins, case: Case, seed: int, regions: Regions) -> None:
        self.run, self.twins, self.case, self.seed = run, twins, case, seed
        self.after, self._twin_after = ({n.name: n for n in p.graph.nodes} for p in (run.after, twins.after))
        self._regions = regions
        self._old_side = OldSide(run.before, twins.before, seed)
        self._shapes = ConcreteShapes(run.before, case.sizes)
        self._kept: dict[str, Tensor] | None = None

    def group(self, group: ClaimGroup) -> Iterator[Finding | str]:
        """Findings of all claims of a group in its regimes, or for each claim the note why there can be none."""
        kinds = group.kinds if group.free else group.kinds[:1]
        for start in range(0, len(kinds), _TOGETHER):
            together = kinds[start : start + _TOGETHER]
            for part in group.parts(self._kept_bytes, len(together)):
                yield from self._at_regimes(part, together)

    def _at_regimes(self, group: ClaimGroup, names: Sequence[str]) -> Iterator[Finding | str]:
        """Regimes whose values are computed together, so that stored tensors are raised or moved once for all."""
        try:
            roots = [self._root_values(group, name) for name in names]
            originals = self._old_side.known(group, roots)
        except RUN_ERRORS as error:
            if len(group.members) > 1:
                yield from self._in_halves(group, names)
            else:
                yield f"site {group.members[0].anchor}: not checked alone: {first_line(error)}"
            return
        candidates = self._new_values(group, [one.values for one in originals], raised=False)
        raised = self._new_values(group, [one.twin for one in originals], raised=True)
        if len(group.members) > 1 and any(isinstance(one, Exception) for one in (*candidates, *raised)):
            yield from self._in_halves(group, names)
            return
        for member in group.members:
            for at, name in enumerate(names):
                candidate, twin = candidates[at], raised[at]
                for values in (candidate, twin):
                    if isinstance(values, Exception):
                        message = f"structure: it does not run: {first_line(values)}"
                        yield Finding("site", member.anchor, name, message)
                        return
                assert not isinstance(candidate, Exception) and not isinstance(twin, Exception)
                new = member.claim.new
                yield from self._compared(member, name, originals[at], candidate[new], twin[new])

    def _in_halves(self, group: ClaimGroup, names: Sequence[str]) -> Iterator[Finding | str]:
        """What does not run is a matter of one claim, and says nothing about the others."""
        for half in group.halves():
            yield from self._at_regimes(half, names)

    def _compared(
        self, member: LocatedClaim, name: str, known: Original, candidate: Tensor, twin: Tensor
    ) -> Iterator[Finding]:
        anchor, region = member.anchor, member.region
        evidence = known.evidence[region.old.name]
        if name in ALIKE_ROWS:
            evidence = with_pooled_rows(evidence)
        result = compare(
            anchor,
            name,
            evidence,
            candidate,
            twin,
            twin_oracle=known.twin[region.old.name],
            limits=site_limits(evidence.original.dtype),
            detailed=False,
            skip_weak_rows=True,
        )
        findings = list(result.findings)
        if name in INFINITIES or (name == NAN and region.holds_attention):
            findings = [f for f in findings if "swallowed" in f.message]
        if name in INFINITIES:
            findings += _negated(anchor, name, evidence.original, candidate)
        if self.run.rewrite_pass.exactness is Exactness.BITWISE:
            findings += compare_bits(anchor, name, evidence.original, candidate)
        yield from (Finding("site", f.where, f.case, f"{f.gate}: {f.message}") for f in findings)

    def _root_values(self, group: ClaimGroup, regime: str) -> dict[str, Value]:
        program, generator = self.run.before, torch.Generator().manual_seed(self.seed)
        made: dict[str, Value] = {}
        for node in group.roots:
            value = recorded_tensor(node)
            if regime != MODEL_VALUES and node in group.free and value is not None:
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
            is_of_domain = self.run.rewrite_pass.exactness is Exactness.EXACT_ON_DOMAIN

            def observe(node: fx.Node, value: Value) -> None:
                if isinstance(value, Tensor) and (is_of_domain or not self._regions.is_activation(node)):
                    kept[node.name] = value

            program = self.run.before
            evaluate(program.graph, program.read, self.case.inputs, observe=observe)
            self._kept = kept
        return self._kept

    def _new_values(
        self, group: ClaimGroup, known: Sequence[Values], *, raised: bool
    ) -> list[dict[str, Tensor] | Exception]:
        nodes, program = (self._twin_after, self.twins.after) if raised else (self.after, self.run.after)
        news = [nodes[one.claim.new] for one in group.members]
        givens = [{nodes[name]: one[name] for name in group.shared} for one in known]
        read = program.tensors.__getitem__ if raised else program.read
        found = node_values_together(news, read, givens, raised=raised)
        return [one if isinstance(one, Exception) else {n.name: v for n, v in one.items()} for one in found]

    def _kept_bytes(self, name: str) -> int:
        """Of a value, its float64 twin, its error and what they are compared with."""
        shapes = map(self._shapes.shape, recorded_tensors(self._regions.nodes[name]))
        return _KEPT_BYTES * sum(prod(shape or ()) for shape in shapes)


def _negated(anchor: str, case: str, before: Tensor, after: Tensor) -> list[Finding]:
    if not before.is_floating_point() or before.shape != after.shape:
        return []
    count = int((before.isinf() & (after == -before)).sum())
    return [Finding("specials", anchor, case, f"negated: {count} infinities changed their sign")] if count else []
