"""Pipeline: passes in order, verified."""

from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from flowopt.errors import UserError
from flowopt.passes.merge.merge_parallel_linears import MergeParallelLinears
from flowopt.pipeline.pipeline_file import SUFFIX, parse_pipeline_file
from flowopt.pipeline.runner import PipelineRun, run_passes
from flowopt.pipeline.text import CANONICALIZE, parse_pass, parse_pipeline
from flowopt.program.program import Program
from flowopt.rewrite.base import RewritePass
from flowopt.verification.levels import Level, require_level
from flowopt.verification.verify_passes import VerifyPasses
from flowopt.workflows.tuned import Tuned

Verify = Literal["each", "off"]


class Pipeline:
    """An ordered list of passes, by name, in text form, out of a file or as objects, with or without verification.

    ``Pipeline("exact")`` is a preset, ``Pipeline("fold-batch-norm,fold-norm-affine")`` its text form,
    ``Pipeline("my.toml")`` (or a ``Path``) a file: see ``flowopt.pipeline.pipeline_file``.
    ``Pipeline(["fold-batch-norm", MyPass()])`` mixes names and objects. ``canonicalize-aten`` runs first even where
    it is not named: passes expect one spelling of every operator.
    """

    def __init__(self, passes: str | Path | Iterable[str | RewritePass[Any]], *, skip: Iterable[str] = ()) -> None:
        self.passes: tuple[RewritePass[Any], ...]
        if isinstance(passes, Path) or (isinstance(passes, str) and passes.strip().endswith(SUFFIX)):
            self.passes = tuple(parse_pipeline_file(Path(str(passes).strip()), skip=skip))
            return
        if isinstance(passes, str):
            self.passes = tuple(parse_pipeline(passes, skip=skip))
            return
        made = [_as_pass(p) for p in passes]
        if not made or made[0].pass_name() != CANONICALIZE:
            made.insert(0, parse_pass(CANONICALIZE))
        unwanted = set(skip)
        self.passes = tuple(p for p in made if p.pass_name() not in unwanted)

    def __repr__(self) -> str:
        return f"Pipeline({self.text()!r})"

    def text(self) -> str:
        """The text form, which parses back for passes that are found by name."""
        return ",".join(p.text() for p in self.passes)

    def following(self, tuned: Tuned) -> "Pipeline":
        """The same passes with measured choices in place of their cost models.

        Raises:
            UserError: the pipeline has no pass that the choices are for.
        """
        if not any(isinstance(p, MergeParallelLinears) for p in self.passes):
            raise UserError(
                "the pipeline has no pass that the measured choices are for",
                hint=f"name merge-parallel-linears in it; it has {', '.join(p.pass_name() for p in self.passes)}",
            )
        made = copy(self)
        made.passes = tuple(
            replace(p, measured=tuned.merges) if isinstance(p, MergeParallelLinears) else p for p in self.passes
        )
        return made

    def run(
        self,
        program: Program,
        *,
        verify: Verify = "each",
        seed: int = 0,
        level: Level = "quick",
        on_pass: Callable[[RewritePass[Any]], None] | None = None,
    ) -> PipelineRun:
        """Rewrite a copy of ``program``.

        Args:
            program: never changed.
            verify: ``each`` judges every pass that fired and undoes those that fail; ``off`` keeps everything.
            seed: of the verification's inputs.
            level: ``quick``, or ``full`` for the whole battery of inputs and stressed weights.
            on_pass: called before each pass.
        """
        require_level(level)
        if verify not in ("each", "off"):
            raise UserError(f"verify={verify!r} must be 'each' or 'off'")
        instruments = [VerifyPasses(seed=seed, level=level)] if verify == "each" else []
        return run_passes(program, self.passes, instruments, on_pass=on_pass)


def _as_pass(given: str | RewritePass[Any]) -> RewritePass[Any]:
    if isinstance(given, str):
        made: RewritePass[Any] = parse_pass(given)
        return made
    if isinstance(given, RewritePass):
        return given
    raise UserError(f"{given!r} is no pass: name one, or give an object of a RewritePass subclass")
