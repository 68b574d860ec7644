"""The instrument that judges every pass of a pipeline."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import final

from flowopt.analysis.graph_numbers import graph_numbers
from flowopt.errors import InternalError
from flowopt.ir.fingerprint import fingerprint
from flowopt.pipeline.instrument import PassRun
from flowopt.program.program import Program
from flowopt.report.verdict import STRESSED, Figures, Finding, Outcome, Verdict
from flowopt.rewrite.base import Exactness
from flowopt.verification.behaviour.answers import ask, fresh
from flowopt.verification.behaviour.layout_check import check_layouts
from flowopt.verification.classes.approximate import judged_approximation
from flowopt.verification.classes.on_domain import DomainCheck
from flowopt.verification.evidence import Evidence, collect_evidence
from flowopt.verification.inputs.case_budget import DEFAULT_BUDGET_TFLOP, within_budget
from flowopt.verification.inputs.cases import Case, quick_recipes
from flowopt.verification.inputs.numbers import plans_of_numbers
from flowopt.verification.inputs.selected_cases import selected_cases
from flowopt.verification.levels import Level
from flowopt.verification.limits import SITE_LIMITS, Limits, site_limits
from flowopt.verification.precision import strict_float32
from flowopt.verification.sites.site_cases import site_cases
from flowopt.verification.sites.site_check import Twins, check_sites
from flowopt.verification.sites.sixteen_bit import sixteen_bit_findings
from flowopt.verification.stress import STRESSED_CASES, stressed
from flowopt.verification.track import Judged, Rewritten, Track
from flowopt.verification.weakness import weak_outputs


@final
class VerifyPasses:
    """Judges each pass against the captured original: float64 twin, rounding, structure, specials, and its sites.

    The oracle and the original's own error are computed once, when they are first needed, and kept as long as runs
    start with the same program. The twin is a float64 copy of the program on which the steps of every kept pass are
    carried out again with float64 algebra throughout. After an APPROXIMATE pass that stays within its budget, what it
    made is the original of the passes behind it.

    Args:
        seed: of cases and ensemble.
        level: ``quick``: four named cases; ``full``: the whole battery, and stressed weights.
        stop_early: return with the first finding.
        budget_tflop: cases above it are skipped and named.
        data: cases of the user's own.
        on_case: called before each case, for progress.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        level: Level = "quick",
        stop_early: bool = False,
        budget_tflop: float = DEFAULT_BUDGET_TFLOP,
        data: Iterable[Case] = (),
        on_case: Callable[[str], None] | None = None,
    ) -> None:
        self._seed, self._level, self._stop_early = seed, level, stop_early
        self._budget_tflop, self._data = budget_tflop, tuple(data)
        self._on_case = on_case
        self._started: str | None = None
        self._evidence: Evidence | None = None
        self._stressed_base: tuple[Program, float, Evidence] | str | None = None
        self._natural: Track | None = None
        self._stress: Track | str | None = None
        self._when_kept: list[Callable[[], None]] = []
        self.original: Program | None = None

    @property
    def evidence(self) -> Evidence:
        """What is known of the original: of the captured program, or of what the last APPROXIMATE pass made of it.

        Cases on which a kept EXACT_ON_DOMAIN pass fails, outside its domain, are among the skipped ones.

        Raises:
            InternalError: no run has started.
        """
        if self.original is None:
            raise InternalError("the instrument has seen no program yet")
        if self._evidence is None:
            cases, skipped = selected_cases(
                self.original, self._level, self._seed, budget_tflop=self._budget_tflop, data=self._data
            )
            with strict_float32():
                found = collect_evidence(self.original, seed=self._seed, cases=cases, on_case=self._on_case)
            self._evidence = replace(found, skipped=(*skipped, *found.skipped))
        return self._evidence

    def start(self, program: Program) -> None:
        """Take the captured original; nothing is computed until a pass has changed something."""
        started = _identity(program)
        if started != self._started:
            self._evidence = self._stressed_base = None
        self._started = started
        self._base(program)

    def judge(self, run: PassRun) -> Verdict:
        """Compare the program after a pass with the captured original, and the pass's sites on their own."""
        self._when_kept = []
        if not self.evidence.cases:
            return Verdict(Outcome.INCONCLUSIVE, notes=self.evidence.skipped, seed=self._seed, level=self._level)
        with strict_float32():
            if run.rewrite_pass.exactness is Exactness.APPROXIMATE:
                return self._judge_approximation(run)
            return self._judge_exact(run)

    def keep(self, run: PassRun) -> None:
        """Go on from what the pass has made, with the weights as they were and with stressed ones."""
        for keep in self._when_kept:
            keep()
        self._when_kept = []

    def _base(self, program: Program) -> None:
        self.original = program
        self._natural = self._stress = None

    def _judge_approximation(self, run: PassRun) -> Verdict:
        natural = self._natural_track()
        verdict = judged_approximation(run, natural.evidence, self._seed, self._level, stop_early=self._stop_early)
        self._when_kept = [partial(self._start_again, run.after)]
        return verdict

    def _start_again(self, program: Program) -> None:
        self._evidence = self._stressed_base = self._started = None
        self._base(program)

    def _judge_exact(self, run: PassRun) -> Verdict:
        findings: list[Finding] = []
        figures: list[Figures] = []
        natural = self._natural_track()
        notes = list(natural.evidence.skipped)
        labels = tuple(e.case.label for e in natural.evidence.cases)
        for one in self._judged(run):
            if isinstance(one, Finding):
                findings.append(one)
                if self._stop_early:
                    break
            elif not isinstance(one, str):
                figures.append(one)
            elif one not in notes:
                notes.append(one)
        weak = [] if findings else self._weakness(run, figures)
        outcome = Outcome.DIFFERENT if findings else Outcome.INCONCLUSIVE if weak else Outcome.EQUIVALENT
        return Verdict(outcome, tuple(findings), tuple(figures), (*weak, *notes), self._seed, labels, self._level)

    def _weakness(self, run: PassRun, figures: Iterable[Figures]) -> list[str]:
        """Why the figures say too little; those of stressed weights do not count, because no model has them."""
        natural = [f for f in figures if not f.regime.startswith(STRESSED)]
        if not natural:
            return ["no case was left to compare the outputs in"]
        return weak_outputs(natural, {o.name: o.dtype for o in run.after.outputs}, self.evidence.narrowest)

    def _judged(self, run: PassRun) -> Iterator[Judged]:
        natural = self._natural_track()
        rewritten = natural.rewritten(run, is_given=True)
        if isinstance(rewritten, Finding):
            yield rewritten
            return
        domain = None
        if run.rewrite_pass.exactness is Exactness.EXACT_ON_DOMAIN:
            assert self.original is not None
            domain = DomainCheck(run, self.original, natural.evidence)
        parts = [self._at_cases(run, rewritten, domain), self._at_sites(run, rewritten, domain)]
        yield from sixteen_bit_findings(run)
        # Sites are cheap beside a whole model, and where one finding is enough they often have it.
        for part in reversed(parts) if self._stop_early else parts:
            yield from part
        self._when_kept.append(partial(self._keep, run, rewritten, domain))
        if self._level == "full":
            yield from self._stressed(run, domain)
            yield from self._at_layouts(run, domain)

    def _keep(self, run: PassRun, rewritten: Rewritten, domain: DomainCheck | None) -> None:
        natural = self._natural_track()
        natural.keep(run, rewritten, natural.evidence if domain is None else domain.narrowed(natural.evidence))
        if domain is not None and domain.failing:
            self._evidence = natural.evidence
            self._started = None  # the next run needs all cases again

    def _at_cases(self, run: PassRun, rewritten: Rewritten, domain: DomainCheck | None) -> Iterator[Judged]:
        natural = self._natural_track()
        yield from natural.judge(run, rewritten, natural.evidence if domain is None else domain.evidence)
        if domain is not None:
            yield from domain.outside()
        elif self._level == "full":
            yield from self._at_new_numbers(run, rewritten)

    def _at_new_numbers(self, run: PassRun, rewritten: Rewritten) -> Iterator[Judged]:
        """Numbers that the rewritten program names, and the one before did not."""
        assert self.original is not None
        before, after = (graph_numbers(p.graph, p.tensors) for p in (run.before, run.after))
        plans = plans_of_numbers(self.original, after - before, quick_recipes(self.original)[0], self._seed)
        kept, skipped = within_budget(self.original, plans, budget_tflop=self._budget_tflop)
        yield from skipped
        cases = [plan.make() for plan in kept]
        if cases:
            natural = self._natural_track()
            yield from natural.judge(run, rewritten, collect_evidence(self.original, seed=self._seed, cases=cases))

    def _at_sites(self, run: PassRun, rewritten: Rewritten, domain: DomainCheck | None) -> Iterator[Finding | str]:
        cases = site_cases(
            run.before, self._natural_track().evidence if domain is None else domain.evidence, self._level
        )
        twins = Twins(rewritten.twin_before, rewritten.twin_after)
        if cases:
            yield from check_sites(run, twins, cases, self._seed, self._level)

    def _at_layouts(self, run: PassRun, domain: DomainCheck | None) -> Iterator[Finding | str]:
        """The rewritten program with inputs that are strided, transposed in memory, or one row repeated."""
        cases = self._natural_track().evidence.cases if domain is None else ()
        known = next((e for e in cases if e.case.name == "traced"), None)
        if known is not None:
            found = ask(run.after.run_named, fresh(known.case.inputs))
            # That bits differ is in the nature of kernels, and was so before the pass.
            yield from (f for f in check_layouts(known, found, run.after.run_named) if isinstance(f, Finding))

    def _stressed(self, run: PassRun, domain: DomainCheck | None) -> Iterator[Judged]:
        track = self._stress_track()
        if isinstance(track, str):
            yield track
            return
        rewritten = track.rewritten(run, is_given=False)
        if isinstance(rewritten, Finding):
            yield rewritten
            return
        # What an earlier pass may do outside its domain would be held against the later ones.
        inside = tuple(e for e in track.evidence.cases if domain is None or domain.contains(e.case))
        evidence = replace(track.evidence, cases=inside)
        is_alike = None
        for one in track.judge(run, rewritten, evidence):
            if isinstance(one, Finding) and is_alike is None:
                is_alike = track.decides_alike(run)
                if not is_alike:
                    note = (
                        f"stressed weights: not run from {run.rewrite_pass.text()} on, which decides by what is stored"
                    )
                    self._when_kept.append(partial(setattr, self, "_stress", note))
                    yield note
                    return
            yield one
        self._when_kept.append(partial(track.keep, run, rewritten, evidence))

    def _natural_track(self) -> Track:
        if self._natural is None:
            assert self.original is not None
            self._natural = Track("", self.original, self.evidence)
        return self._natural

    def _stress_track(self) -> Track | str:
        """Stressed copies of the original, or the note why there is none."""
        if self._stress is None:
            self._stressed_base = self._stressed_base or self._stressed_original()
            if isinstance(self._stressed_base, str):
                return self._stressed_base
            program, factor, evidence = self._stressed_base
            self._stress = Track(f"{STRESSED} x{factor:g}", program, evidence, _site_limits(evidence))
        return self._stress

    def _stressed_original(self) -> tuple[Program, float, Evidence] | str:
        assert self.original is not None
        cases = [e.case for e in self.evidence.cases if e.case.name in STRESSED_CASES and not e.case.overrides]
        if not cases:
            return f"stressed weights: not run, none of the cases {', '.join(STRESSED_CASES)} runs"
        found = stressed(self.original, cases)
        if found is None:
            return "stressed weights: not run, every factor leaves mostly infinities"
        return (*found, collect_evidence(found[0], seed=self._seed, cases=cases))


def _identity(program: Program) -> str:
    """A run that starts with the same asks the same cases of the same original."""
    example = {f"example {name}": tensor for name, tensor in program.example.items()}
    known = fingerprint(program.graph, {**program.tensors, **example})
    return f"{known} {program.dims} {program.inputs} {program.outputs}"


def _site_limits(evidence: Evidence) -> Limits:
    """The widest limits that an output's dtype asks for."""
    dtypes = {o.original.dtype for e in evidence.cases for o in e.outputs.values()}
    return max((site_limits(dtype) for dtype in dtypes), key=lambda limits: limits.largest, default=SITE_LIMITS)
