"""An earlier report as the least that a run has to reach."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, final

from flowopt.errors import MalformedModel, ModelNotFound, RequirementNotMet, UserError
from flowopt.formats.bounded_json import parse_json
from flowopt.formats.limits import MEBIBYTE, Limits
from flowopt.pipeline.text import CANONICALIZE
from flowopt.program.interface import Interface, TensorSpec
from flowopt.program.program import Program
from flowopt.report.baseline import grown_errors, regressions
from flowopt.report.recurrence import Recurrence
from flowopt.report.report import Report
from flowopt.report.stored import StoredFigure, StoredReport, StoredVerdict, stored_report
from flowopt.report.to_json import plain
from flowopt.report.verdict import Verdict
from flowopt.runtime.interface import parsed_interface

_LIMITS: Final = Limits(json=64 * MEBIBYTE)
# One screen.
_MOST_LINES: Final = 20


@final
@dataclass(frozen=True, slots=True)
class Baseline:
    """A report of the same model. Read one with ``Baseline.read``."""

    path: Path
    report: StoredReport

    @staticmethod
    def read(path: str | Path) -> "Baseline":
        """The report in a file.

        Raises:
            ModelNotFound: no such file.
            MalformedModel: no JSON, no report, one of another schema version, or more than 64 MiB.
            UserError: a folder, or a file that cannot be read.
        """
        path = Path(path)
        report = stored_report(parse_json(_content(path), what=str(path), limits=_LIMITS), what=str(path))
        if not report.interface:
            raise MalformedModel(
                f"the baseline {path} does not say of which inputs and outputs it is",
                hint="give a report of flowopt optimize: report.json of an artifact, or its --json",
            )
        return Baseline(path, report)

    def require_model(self, program: Program) -> None:
        """Refuse a baseline of another model: of one with other inputs, outputs or free dimensions.

        That of a step is of the model that the step was made of, whatever it carries.

        Raises:
            UserError: it is.
            MalformedModel: what it says of them is not what flowopt writes.
        """
        try:
            before, now = parsed_interface(self.report.interface), program.interface
            if self.report.step is not None:
                before = _without_states(before, self.report.step.recurrence)
                now = _of_one_token(now, self.report.step.recurrence)
            _require_same(self.path, before, now)
        except MalformedModel as error:
            error.add_note(f"the baseline {self.path}")
            raise

    def require_target(self, target: str) -> None:
        """Refuse a baseline of another target, whose operators and errors are others.

        Raises:
            UserError: it is.
        """
        if self.report.target != target:
            raise UserError(
                f"the baseline {self.path} is for target {self.report.target}, this run for {target}",
                hint=f"give a report of an earlier run with --target {target}",
            )

    def require_form(self, form: str) -> None:
        """Refuse a baseline of a step for whole sequences, and the other way around.

        Raises:
            UserError: it is.
        """
        of = "parallel" if self.report.step is None else "recurrent"
        if of != form:
            raise UserError(
                f"the baseline {self.path} is of a run with --form {of}, this one has --form {form}",
                hint=f"give a report of an earlier run with --form {form}",
            )

    def require_verified(self) -> None:
        """Refuse a baseline that has no errors of a lowered file to compare with.

        Raises:
            UserError: it is of a dry run, or of one with ``--verify off``.
        """
        if not self._verdict().figures:
            raise UserError(
                f"the baseline {self.path} has no errors to compare with",
                why=f"its outcome is {self.report.outcome}: nothing lowered was verified",
                hint="give a report of a verified run of flowopt optimize",
            )

    def require_met(self, report: Report) -> None:
        """Compare a run of ``optimize``.

        Raises:
            RequirementNotMet: something is worse; names each thing.
        """
        now = stored_report(plain(report), what="this run's report")
        self._require_nothing(regressions(self.report, now, respelling=[CANONICALIZE]))

    def require_verdict_met(self, verdict: Verdict) -> None:
        """Compare a run of ``verify`` with what the report says of the lowered file, at the level that it runs at.

        Raises:
            RequirementNotMet: an output's errors have grown.
            UserError: no case of the verdict is in the report.
        """
        before = self._verdict()
        now = [StoredFigure(one.output, one.case, one.ratio) for one in verdict.figures]
        figures = before.figures
        if self.report.step is not None:
            # The file was compared token by token; its errors on whole sequences are those of the step as well.
            figures = _largest((*figures, *self.report.step.figures))
        cases = {figure.case for figure in figures}
        if not any(figure.case in cases for figure in now):
            raise UserError(
                f"the baseline {self.path} has no case that this run has",
                why=f"it has {', '.join(sorted(cases))}",
                hint="give a report of a run of flowopt optimize with the same --level",
            )
        self._require_nothing(grown_errors(figures, now))

    def _verdict(self) -> StoredVerdict:
        of_level = [one for one in self.report.lowered if one.level == self.report.runtime_level]
        return next(iter([*of_level, *self.report.lowered]), StoredVerdict("", "not-verified", ()))

    def _require_nothing(self, worse: tuple[str, ...]) -> None:
        if not worse:
            return
        more = [f"and {len(worse) - _MOST_LINES} more"] if len(worse) > _MOST_LINES else []
        count = "1 thing is" if len(worse) == 1 else f"{len(worse)} things are"
        raise RequirementNotMet(
            f"{count} worse than in the baseline {self.path}",
            why="\n".join([*worse[:_MOST_LINES], *more]),
            hint=self._hint(),
        )

    def _hint(self) -> str:
        meant = "flowopt explain shows every site; where this is meant, make the new report.json the baseline"
        adapted = self.report.adaptation
        return meant if adapted is None else f"{meant}\nthe baseline is of an adapted model: {adapted.method}"


def opened_baseline(baseline: str | Path | Baseline, program: Program) -> Baseline:
    """A baseline, read where it is a path, that is of this program; errors as above."""
    least = baseline if isinstance(baseline, Baseline) else Baseline.read(baseline)
    least.require_model(program)
    return least


def _largest(figures: tuple[StoredFigure, ...]) -> tuple[StoredFigure, ...]:
    """Of each output in each case the largest; last, so that it counts."""
    return tuple(sorted(figures, key=lambda figure: figure.ratio))


def _content(path: Path) -> bytes:
    if path.is_dir():
        raise UserError(f"the baseline {path} is a folder", hint=f"give the report in it: {path / 'report.json'}")
    if not path.is_file():
        raise ModelNotFound(f"no baseline {path}", hint="an artifact's folder has one, called report.json")
    try:
        with path.open("rb") as file:
            raw = file.read(_LIMITS.json + 1)
    except OSError as error:
        raise UserError(f"cannot read the baseline {path}: {error.strerror}", hint="check its permissions") from error
    if len(raw) > _LIMITS.json:
        raise MalformedModel(
            f"the baseline {path} has more than {_LIMITS.json:,} bytes", hint="a report has a few MiB: check the path"
        )
    return raw


def _without_states(step: Interface, recurrence: Recurrence) -> Interface:
    carried = {name for state in recurrence.states for name in (state.input, state.output)}
    inputs, outputs = (tuple(t for t in of if t.name not in carried) for of in (step.inputs, step.outputs))
    return replace(step, inputs=inputs, outputs=outputs)


def _of_one_token(whole: Interface, recurrence: Recurrence) -> Interface:
    def one(spec: TensorSpec) -> TensorSpec:
        axis = recurrence.token_axes.get(spec.name)
        if axis is None or axis >= len(spec.shape) or spec.shape[axis] != recurrence.sequence:
            return spec
        return replace(spec, shape=(*spec.shape[:axis], 1, *spec.shape[axis + 1 :]))

    dims = {name: limits for name, limits in whole.dims.items() if name != recurrence.sequence}
    return replace(whole, inputs=tuple(map(one, whole.inputs)), outputs=tuple(map(one, whole.outputs)), dims=dims)


def _require_same(path: Path, before: Interface, now: Interface) -> None:
    for what, olds, news in (("input", before.inputs, now.inputs), ("output", before.outputs, now.outputs)):
        old, new = {one.name: str(one) for one in olds}, {one.name: str(one) for one in news}
        for name in dict.fromkeys([*old, *new]):
            if old.get(name) != new.get(name):
                raise _another(path, f"{what} {old.get(name, f'{name}: none')} there, {new.get(name, 'none')} here")
    for name in dict.fromkeys([*before.dims, *now.dims]):
        if before.dims.get(name) != now.dims.get(name):
            raise _another(path, f"{name} is {_range(before, name)} there, {_range(now, name)} here")


def _another(path: Path, difference: str) -> UserError:
    return UserError(
        f"the baseline {path} is of another model: {difference}",
        hint="give a report of this model, captured with the same inputs and free dimensions",
    )


def _range(interface: Interface, name: str) -> str:
    if name not in interface.dims:
        return "not free"
    low, high = interface.dims[name]
    return f"{low}..{'' if high is None else high}"
