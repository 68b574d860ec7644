"""Run passes in order and keep the runner's promises after each of them."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from flowopt.errors import InternalError
from flowopt.ir.fingerprint import fingerprint
from flowopt.ir.legality import violations
from flowopt.pipeline.instrument import Instrument, PassRun
from flowopt.program.program import Program
from flowopt.report.passes import PassRecord
from flowopt.report.verdict import Verdict
from flowopt.rewrite.base import RewritePass
from flowopt.rewrite.driver import Application, apply
from flowopt.rewrite.unclaimed import unclaimed_changes


@dataclass(frozen=True, slots=True)
class PipelineRun:
    """The rewritten program and one record per pass."""

    program: Program
    records: tuple[PassRecord, ...]


def run_passes(
    program: Program,
    passes: Sequence[RewritePass[Any]],
    instruments: Sequence[Instrument] = (),
    *,
    on_pass: Callable[[RewritePass[Any]], None] | None = None,
) -> PipelineRun:
    """Apply ``passes`` to a copy of ``program``. A pass that an instrument vetoes is undone, the others stay.

    After every pass: the graph is legal; a pass that reports no rewrite changed nothing, one that reports some
    changed something, and only what it claims; none wrote into a tensor or touched inputs and outputs.

    Args:
        program: never changed.
        passes: in order.
        instruments: judge every pass that changed something.
        on_pass: called before each pass, for progress.

    Raises:
        InternalError: a promise above is broken; names the pass.
        Exception: whatever a pass raises, with the pass noted.
    """
    current = program.copy()
    current.drop_unused()
    _require_legal(current, "the captured program")
    for instrument in instruments:
        instrument.start(current.copy())
    records: list[PassRecord] = []
    for rewrite_pass in passes:
        if on_pass is not None:
            on_pass(rewrite_pass)
        current, record = _run_one(current, rewrite_pass, instruments)
        records.append(record)
    return PipelineRun(current, tuple(records))


def _run_one(
    before: Program, rewrite_pass: RewritePass[Any], instruments: Sequence[Instrument]
) -> tuple[Program, PassRecord]:
    started = time.perf_counter()
    after = before.copy()
    versions = {name: t._version for name, t in before.tensors.items() if not t.is_inference()}
    untouched = fingerprint(after.graph, after.tensors)
    application = apply(rewrite_pass, after)
    name = rewrite_pass.text()
    _require_claims_hold(name, application, untouched != fingerprint(after.graph, after.tensors))
    _require_claimed(name, before, after, application)
    written = [n for n, version in versions.items() if before.tensors[n]._version != version]
    if written:
        raise InternalError(f"{name} wrote into {written[0]!r}: tensors are immutable, store a new one")
    _require_legal(after, name)
    _require_same_interface(before, after, name)
    rewritten = time.perf_counter()
    run = PassRun(rewrite_pass, before, after, application)
    verdict = _judge(run, instruments) if application.steps else None
    reverted = verdict is not None and not verdict
    for instrument in instruments if application.steps and not reverted else ():
        instrument.keep(run)
    record = PassRecord(
        name=name,
        exactness=rewrite_pass.exactness.value,
        anchors=len(application.applied) + len(application.refused),
        applied=application.applied,
        refused=application.refused,
        outcome="reverted" if reverted else "kept" if application.steps else "unchanged",
        reason=verdict.reason if verdict is not None and reverted else "",
        seconds=rewritten - started,
        verify_seconds=time.perf_counter() - rewritten,
        added_bytes=0 if reverted else after.parameter_bytes - before.parameter_bytes,
        verdict=verdict,
    )
    return (before if reverted else after), record


def _judge(run: PassRun, instruments: Sequence[Instrument]) -> Verdict | None:
    last: Verdict | None = None
    for instrument in instruments:
        try:
            verdict = instrument.judge(run)
        except Exception as error:
            error.add_note(f"while {type(instrument).__name__} judged {run.rewrite_pass.text()}")
            raise
        if verdict is not None:
            last = verdict
            if not verdict:
                return verdict
    return last


def _require_claims_hold(name: str, application: Application, changed: bool) -> None:
    if changed and not application.steps:
        raise InternalError(f"{name} refused every site but changed the program")
    if application.steps and not changed:
        raise InternalError(f"{name} reports {len(application.steps)} rewrites but changed nothing")


def _require_claimed(name: str, before: Program, after: Program, application: Application) -> None:
    claims = [c for step in application.steps for c in (*step.claims, *step.sizes)]
    changes = list(unclaimed_changes(before.graph, after.graph, claims))
    if changes:
        raise InternalError(f"{name} changed what it does not claim: " + "; ".join(changes[:3]))


def _require_legal(program: Program, name: str) -> None:
    broken = list(violations(program.graph, program.tensors))
    if broken:
        raise InternalError(f"after {name} the graph is not legal: " + "; ".join(broken[:5]))


def _require_same_interface(before: Program, after: Program, name: str) -> None:
    placeholders = [n.name for n in after.graph.nodes if n.op == "placeholder"]
    if (before.inputs, before.outputs) != (after.inputs, after.outputs) or placeholders != [
        i.name for i in after.inputs
    ]:
        raise InternalError(f"{name} changed the inputs or outputs")
    for output, old, new in zip(before.outputs, _returned(before), _returned(after), strict=True):
        if old != new:
            raise InternalError(f"{name} changed output {output.name!r} from {old} to {new}")


def _returned(program: Program) -> list[str]:
    """Dtype and shape of every output, as recorded."""
    nodes: Any = program.graph.output_node().args[0]
    return [f"{n.meta['val'].dtype} {list(s)}" for n, s in zip(nodes, program.output_shapes(), strict=True)]
