"""assert_rewrites: a pass fires on a model, and is right."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flowopt.verification.levels import require_level

if TYPE_CHECKING:
    from flowopt.pipeline.runner import PipelineRun
    from flowopt.program.program import Program
    from flowopt.report.passes import PassRecord
    from flowopt.rewrite.base import RewritePass
    from flowopt.testing.captured import Inputs, Model
    from flowopt.testing.digest import Digest
    from flowopt.verification.levels import Level
    from flowopt.verification.verify_passes import VerifyPasses

# Our own passes agree with the oracle to this part of a row's scale; users' pipelines get 1e-9.
UNIT_TEST_TWIN_TOLERANCE = 1e-10


def assert_rewrites(
    rewrite_pass: "RewritePass[Any]",
    model: "Model",
    inputs: "Inputs" = (),
    *,
    before: Mapping[str, int],
    after: Mapping[str, int],
    dynamic: Mapping[str, Any] | None = None,
    dims: Mapping[str, tuple[int, int | None]] | None = None,
    max_ulp: int | None = None,
    level: "Level" = "quick",
    seed: int = 0,
) -> "PipelineRun":
    """Assert that a pass fires and is right.

    Checks operator counts before and after, the float64 twin to 1e-10, rounding, specials and every site on its
    own, that the pass changed what it says and nothing else, that a second run changes nothing, and that the
    caller's model is untouched.

    Args:
        rewrite_pass: the pass, alone; run ``canonicalize-aten`` first where it needs canonical spellings.
        model: a module in eval mode with randomised weights, or a captured Program.
        inputs: example inputs for a module, by position or by name.
        before: operator (``aten.conv2d``) to its number of calls in the captured graph.
        after: the same after the pass.
        dynamic: free dimensions, as for ``flowopt.capture``.
        dims: their ranges.
        max_ulp: how far the rewritten program may be from the captured one on ordinary numbers, in units in the
            last place of a row's largest element; None: only the verifier's own limits count.
        level: of the verification.
        seed: of the verification's inputs.

    Returns:
        The run, for further assertions.

    Raises:
        AssertionError: says which of these does not hold; a promise of passes that is broken has the runner's error
            as its cause.
        UserError: there is no such level, or the module cannot be captured.
        Exception: whatever the pass raises, with the place noted.
    """
    __tracebackhide__ = True
    from flowopt.ir.text import operator_census
    from flowopt.testing.captured import captured
    from flowopt.testing.digest import digest
    from flowopt.testing.run_alone import run_alone
    from flowopt.verification.verify_passes import VerifyPasses

    require_level(level)
    program = captured(model, inputs, dynamic, dims)
    name, untouched = rewrite_pass.text(), digest(model, inputs)
    _require_counts("before", operator_census(program.graph), before)
    verifier = VerifyPasses(seed=seed, level=level)
    run = run_alone(rewrite_pass, program, [verifier])
    _require_untouched(name, untouched, digest(model, inputs))
    _require_kept(name, run.records[0])
    _require_counts("after", operator_census(run.program.graph), after)
    _require_same_twin(name, run.records[0])
    if max_ulp is not None:
        _require_close(name, program, run.program, verifier, max_ulp)
    again = run_alone(rewrite_pass, run.program).records[0]
    if again.applied:
        raise AssertionError(
            f"{name} is not idempotent: it fires again at {again.applied[0].site}; "
            "let check refuse what rewrite leaves behind"
        )
    _require_untouched(name, untouched, digest(model, inputs))
    return run


def _require_counts(when: str, census: Mapping[str, int], wanted: Mapping[str, int]) -> None:
    __tracebackhide__ = True
    found = {operator: census.get(operator, 0) for operator in wanted}
    if found != dict(wanted):
        raise AssertionError(f"operators {when}: {found}, expected {dict(wanted)}; all: {dict(census)}")


def _require_untouched(name: str, before: "Digest", after: "Digest") -> None:
    __tracebackhide__ = True
    from flowopt.testing.digest import changed

    touched = changed(before, after)
    if touched:
        raise AssertionError(
            f"{name} changed the caller's model: {', '.join(touched)}; store new tensors with edit.parameter"
        )


def _require_kept(name: str, record: "PassRecord") -> None:
    __tracebackhide__ = True
    if not record.applied:
        first = record.refused[0].message if record.refused else "no site"
        raise AssertionError(f"{name} refused every site: {record.refusal_counts}; {first}")
    if record.outcome != "kept":
        raise AssertionError(f"{name} was reverted: {record.reason}")


def _require_same_twin(name: str, record: "PassRecord") -> None:
    __tracebackhide__ = True
    figures = record.verdict.figures if record.verdict is not None else ()
    worst = max(figures, key=lambda f: f.twin_error or 0.0, default=None)
    if worst is not None and (worst.twin_error or 0.0) > UNIT_TEST_TWIN_TOLERANCE:
        raise AssertionError(
            f"{name}: the float64 twin differs by {worst.twin_error:.2e} of a row's scale, allowed "
            f"{UNIT_TEST_TWIN_TOLERANCE:.0e}: {worst.output} (case {worst.case}); compute weights in float64"
        )


def _require_close(name: str, before: "Program", after: "Program", verifier: "VerifyPasses", max_ulp: int) -> None:
    __tracebackhide__ = True
    from flowopt.testing.ulp import largest_ulp

    natural = [e.case for e in verifier.evidence.cases if e.case.is_natural and not e.case.overrides]
    if not natural:
        raise AssertionError(f"{name}: max_ulp={max_ulp} cannot be checked: no case of ordinary numbers ran")
    for case in natural:
        wanted, found = before.run_named(case.inputs), after.run_named(case.inputs)
        for output, value in wanted.items():
            distance = largest_ulp(value, found[output])
            if distance > max_ulp:
                raise AssertionError(
                    f"{name} moves {output} by {distance:.1f} ulp of its row's largest element, allowed {max_ulp} "
                    f"(case {case.label})"
                )
