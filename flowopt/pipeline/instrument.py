"""Instrument: what watches a pipeline run, and may veto a pass."""

from dataclasses import dataclass
from typing import Any, Protocol

from flowopt.program.program import Program
from flowopt.report.verdict import Verdict
from flowopt.rewrite.base import RewritePass
from flowopt.rewrite.driver import Application


@dataclass(frozen=True, slots=True)
class PassRun:
    """One pass that changed the program, before it is kept."""

    rewrite_pass: RewritePass[Any]
    before: Program
    after: Program
    application: Application


class Instrument(Protocol):
    """Called around passes by the runner. The pipeline knows verification only through this."""

    def start(self, program: Program) -> None:
        """A run begins with this program."""

    def judge(self, run: PassRun) -> Verdict | None:
        """A pass changed the program. A falsy verdict reverts it; None is no opinion."""

    def keep(self, run: PassRun) -> None:
        """No instrument has reverted the pass that was judged last: the run goes on from what it made."""
