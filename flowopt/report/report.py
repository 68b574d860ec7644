"""The report of one ``optimize`` run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flowopt.report.adaptation import Adaptation
from flowopt.report.loop import LoopRecord
from flowopt.report.passes import PassRecord
from flowopt.report.recurrence import Recurrence
from flowopt.report.sites import Refusal
from flowopt.report.verdict import Verdict

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class LevelVerdict:
    """The lowered file at one optimisation level of its runtime."""

    level: str
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that one run decided and measured; ``report.json`` is this, as JSON.

    Attributes:
        outcome: ``verified``, ``approximate`` (verified, and within the budgets of its approximate passes),
            ``verified-on-cpu``, ``different``, ``inconclusive``, ``not-verified`` or ``dry-run``.
        target: name of the target.
        source: what was optimized.
        source_sha256: digest of the file that it is; None where it is no file.
        loop: of a folded sampler; None for a model without a loop of its own.
        adaptation: of an adapted model: what was changed approximately before the passes, and what it cost; else None.
        recurrence: of a causal model that was lowered as a step; else None.
        trust: what that file was allowed to do: ``data``, ``weights`` or ``code``.
        passes: one record per pass, in order.
        pipeline: those passes in text form, whatever form they were given in: ``--passes`` takes it again.
        census_before: operator to number of calls in the captured graph.
        census_after: the same after the last pass.
        census_lowered: the same in the lowered file; empty when nothing was lowered.
        lowered: verdict per optimisation level of the runtime.
        runtime: settings that the artifact runs with, such as the highest level that agrees.
        interface: inputs and outputs as the artifact has them.
        warnings: sentences that the user should read.
        parameter_bytes: bytes of stored tensors, before and after.
        versions: flowopt, torch and the runtimes that took part.
    """

    outcome: str
    target: str
    source: str
    passes: tuple[PassRecord, ...]
    census_before: Mapping[str, int]
    census_after: Mapping[str, int]
    census_lowered: Mapping[str, int] = field(default_factory=dict)
    lowered: tuple[LevelVerdict, ...] = ()
    runtime: Mapping[str, Any] = field(default_factory=dict)
    interface: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    parameter_bytes: tuple[int, int] = (0, 0)
    versions: Mapping[str, str] = field(default_factory=dict)
    source_sha256: str | None = None
    trust: str | None = None
    pipeline: str = ""
    loop: LoopRecord | None = None
    adaptation: Adaptation | None = None
    recurrence: Recurrence | None = None
    schema_version: int = SCHEMA_VERSION

    def refusals(self, name: str | None = None) -> tuple[Refusal, ...]:
        """Refused sites of one pass (its name without options), or of all passes."""
        wanted = [p for p in self.passes if name is None or p.name.split(":")[0] == name]
        return tuple(r for p in wanted for r in p.refused)

    def applied_count(self, name: str) -> int:
        """Sites where a pass fired and was kept."""
        kept = [p for p in self.passes if p.name.split(":")[0] == name and p.outcome == "kept"]
        return sum(len(p.applied) for p in kept)
