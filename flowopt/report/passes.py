"""What a pass did to a program."""

from collections import Counter
from dataclasses import dataclass

from flowopt.report.sites import Applied, Refusal
from flowopt.report.verdict import Verdict


@dataclass(frozen=True, slots=True)
class PassRecord:
    """One pass of a pipeline run.

    Attributes:
        name: the pass with its options, in the text form of pipelines.
        exactness: its class, such as ``exact``.
        anchors: sites it looked at; always ``len(applied) + len(refused)``.
        applied: sites where it fired.
        refused: sites where it did not, and why.
        outcome: ``kept``, ``reverted`` (it failed verification and was undone) or ``unchanged``.
        reason: why it was reverted.
        seconds: time of the rewrite, without verification.
        verify_seconds: time of its verification.
        added_bytes: growth of the stored tensors, such as copies of tied weights.
        verdict: the verification's end; None when nothing changed or verification is off.
    """

    name: str
    exactness: str
    anchors: int
    applied: tuple[Applied, ...]
    refused: tuple[Refusal, ...]
    outcome: str
    reason: str = ""
    seconds: float = 0.0
    verify_seconds: float = 0.0
    added_bytes: int = 0
    verdict: Verdict | None = None

    @property
    def refusal_counts(self) -> dict[str, int]:
        """Refusal code to number of sites, most frequent first."""
        return dict(Counter(r.code for r in self.refused).most_common())
