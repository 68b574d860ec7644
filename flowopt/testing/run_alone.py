"""Run one pass; a promise that it breaks is a failure of the test."""

from collections.abc import Sequence
from typing import Any, final

from flowopt.errors import InternalError
from flowopt.pipeline.instrument import Instrument, PassRun
from flowopt.pipeline.runner import PipelineRun, run_passes
from flowopt.program.program import Program
from flowopt.rewrite.base import RewritePass


def run_alone(rewrite_pass: RewritePass[Any], program: Program, instruments: Sequence[Instrument] = ()) -> PipelineRun:
    """The run of one pass.

    Raises:
        AssertionError: the pass broke a promise that the runner checks, with the runner's error as its cause.
        InternalError: a defect elsewhere: in the given program, in an instrument.
        Exception: whatever the pass raises, with the place noted.
    """
    __tracebackhide__ = True
    stage = _Stage()
    try:
        return run_passes(program, [rewrite_pass], [stage, *instruments], on_pass=stage.enter)
    except InternalError as error:
        if not stage.is_the_pass_at_work:
            raise
        failure = AssertionError(f"{rewrite_pass.text()} breaks a promise of passes: {error}")
        for note in getattr(error, "__notes__", ()):
            failure.add_note(note)
        raise failure from error


@final
class _Stage:
    """Knows whether the pass is at work: from its start until what it did has been found legal and is judged.

    The runner raises the same type for a pass's broken promises and for defects of flowopt; only the moment tells
    them apart.
    """

    def __init__(self) -> None:
        self.is_the_pass_at_work = False

    def enter(self, _: RewritePass[Any]) -> None:
        self.is_the_pass_at_work = True

    def start(self, program: Program) -> None:
        """Nothing to prepare."""

    def judge(self, run: PassRun) -> None:
        """First of the instruments: from here on, others are at work."""
        self.is_the_pass_at_work = False

    def keep(self, run: PassRun) -> None:
        """Nothing to remember."""
