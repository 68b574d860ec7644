"""Check every claim of a rewrite at its own boundary, with adversarial tensors.

A whole model hides much: a ReLU behind the site, a softmax that saturates. At the site nothing does. Both sides of
a claim get the same tensors at the roots of its region.
"""

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor, fx

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
from flowopt.verification.sites.old_side import OldSide, Original, Values
from flowopt.verification.sites.pattern import pattern_of
from flowopt.verification.sites.region import Region, Regions
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
    seen: set[str] = set()
    for anchor, claim in whole_claims(run.application, checks[0].after):
        if claim.old not in checks[0].before:
            continue  # made by this pass: a step on the way of another claim
        regions = [check.region(claim) for check in checks]
        pattern = pattern_of(regions[0], checks[0].after[claim.new])
        left_out = AT_FIRST_ALIKE if level == "quick" and pattern in seen else ()
        seen.add(pattern)
        for check, region in zip(checks, regions, strict=True):
            yield from check.claim(anchor, claim, region, left_out)


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
        self.after, self._twin_after = ({n.name: n for n in p.graph.nodes} for p in (run.after, twins.after))
        self._regions = Regions(run.before)
        self.before = self._regions.nodes
        self._old_side = OldSide(run.before, twins.before, seed)
        self._kept: dict[str, Tensor] | None = None

    def region(self, claim: Claim) -> Region:
        """The region of a claim."""
        return self._regions.of(claim.old, self.after[claim.new])

    def claim(self, anchor: str, claim: Claim, region: Region, left_out: Container[str]) -> Iterator[Finding | str]:
        """Findings of one claim in all regimes but those left out, or the note why there can be none."""
        kinds = [kind for kind in self._kinds if kind not in left_out]
        if not region.free:
            kinds = kinds[:1]  # constants and integers are the same in all
        for start in range(0, len(kinds), _TOGETHER):
            yield from self._at_regimes(anchor, claim, region, kinds[start : start + _TOGETHER])

    def _at_regimes(self, anchor: str, claim: Claim, region: Region, names: Sequence[str]) -> Iterator[Finding | str]:
        """Regimes whose values are computed together, so that stored tensors are raised or moved once for all."""
        try:
            roots = [self._root_values(region, name) for name in names]
            originals = self._old_side.known(region, roots)
        except RUN_ERRORS as error:
            yield f"site {anchor}: not checked alone: {first_line(error)}"
            return
        candidates = self._new_values(claim, region, [one.values for one in originals], raised=False)
        raised = self._new_values(claim, region, [one.twin for one in originals], raised=True)
        for at, name in enumerate(names):
            candidate, twin = candidates[at], raised[at]
            for value in (candidate, twin):
                if isinstance(value, Exception):
                    message = f"structure: it does not run: {first_line(value)}"
                    yield Finding("site", anchor, name, message)
                    return
            assert isinstance(candidate, Tensor) and isinstance(twin, Tensor)
            yield from self._compared(anchor, name, region, originals[at], candidate, twin)

    def _compared(
        self, anchor: str, name: str, region: Region, known: Original, candidate: Tensor, twin: Tensor
    ) -> Iterator[Finding]:
        evidence = with_pooled_rows(known.evidence) if name in ALIKE_ROWS else known.evidence
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

    def _new_values(
        self, claim: Claim, region: Region, known: Sequence[Values], *, raised: bool
    ) -> list[Tensor | Exception]:
        nodes, program = (self._twin_after, self.twins.after) if raised else (self.after, self.run.after)
        new = nodes[claim.new]
        givens = [{nodes[name]: one[name] for name in region.shared} for one in known]
        found = node_values_together((new,), program.read, givens, raised=raised)
        return [values if isinstance(values, Exception) else values[new] for values in found]


def _negated(anchor: str, case: str, before: Tensor, after: Tensor) -> list[Finding]:
    if not before.is_floating_point() or before.shape != after.shape:
        return []
    count = int((before.isinf() & (after == -before)).sum())
    return [Finding("specials", anchor, case, f"negated: {count} infinities changed their sign")] if count else []
