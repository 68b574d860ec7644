"""A report as it lies in a file: what is compared and shown of it, out of JSON values that anybody may have written."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flowopt.errors import MalformedModel
from flowopt.report.adaptation import SWAPPED
from flowopt.report.json_value import JsonValue
from flowopt.report.recurrence import Recurrence
from flowopt.report.report import SCHEMA_VERSION
from flowopt.report.stored_recurrence import stored_recurrence


@dataclass(frozen=True, slots=True)
class StoredPass:
    """One pass: sites where it fired, and the codes of those where it did not, by site."""

    name: str
    outcome: str
    reason: str
    applied: tuple[str, ...]
    refused: Mapping[str, str]

    @property
    def bare_name(self) -> str:
        """Its name without options."""
        return self.name.split(":")[0]

    @property
    def kept(self) -> tuple[str, ...]:
        """Sites that it changed for good."""
        return self.applied if self.outcome == "kept" else ()


@dataclass(frozen=True, slots=True)
class StoredFigure:
    """The error gate's ratio of one output in one case, at most 1 where it passed."""

    output: str
    case: str
    ratio: float


@dataclass(frozen=True, slots=True)
class StoredVerdict:
    """A verdict on the lowered file at one optimisation level of its runtime."""

    level: str
    outcome: str
    figures: tuple[StoredFigure, ...]

    @property
    def worst_ratio(self) -> float:
        """Largest of all ratios; 0.0 without figures."""
        return max((figure.ratio for figure in self.figures), default=0.0)


@dataclass(frozen=True, slots=True)
class StoredLoop:
    """The loop of a folded sampler; attributes as in ``LoopRecord``."""

    sampler: str
    evaluations: int
    state: int
    form: str


@dataclass(frozen=True, slots=True)
class StoredAgreement:
    """One output of an adapted model beside its original's; attributes as in ``Agreement``."""

    output: str
    cosine: float
    relative_error: float
    top1: float | None


@dataclass(frozen=True, slots=True)
class StoredAdaptation:
    """How a model was changed before it was rewritten, and how far it is from its original since.

    Attributes:
        norms: of the model; 0 for a recalibration.
        swapped: those that were replaced.
        layers: attentions of the model, of a linearization; else 0.
        linearized: those that were replaced.
        data: in words, of which ``held_out`` samples were never trained on.
        agreement: after the last stage, on those.
        metric: name of the user's metric; empty without one.
        metrics: its value for the original and after the last stage; None where there is none.
    """

    method: str
    norms: int
    swapped: int
    data: str
    held_out: int
    agreement: tuple[StoredAgreement, ...]
    metric: str
    metrics: tuple[float | None, float | None]
    layers: int = 0
    linearized: int = 0


@dataclass(frozen=True, slots=True)
class StoredStep:
    """Of a model that was lowered as a step.

    Attributes:
        recurrence: without its verdict.
        figures: of the step, token by token, against the model on whole sequences; none where it was not verified.
    """

    recurrence: Recurrence
    figures: tuple[StoredFigure, ...]


@dataclass(frozen=True, slots=True)
class StoredReport:
    """A report of this version of the schema; attributes as in ``Report``.

    Attributes:
        runtime_level: optimisation level that the artifact runs at; empty where there is none.
        loop: of a folded sampler; None for other models.
        adaptation: of an adapted model; None for one that is its original's function.
        step: of a model that was lowered as a step; None for one of whole sequences.
    """

    outcome: str
    target: str
    source: str
    pipeline: str
    passes: tuple[StoredPass, ...]
    census_after: Mapping[str, int]
    census_lowered: Mapping[str, int]
    parameter_bytes: tuple[int, int]
    lowered: tuple[StoredVerdict, ...]
    runtime_level: str
    interface: Mapping[str, Any]
    warnings: tuple[str, ...]
    versions: Mapping[str, str]
    loop: StoredLoop | None = None
    adaptation: StoredAdaptation | None = None
    step: StoredStep | None = None


def stored_report(value: object, *, what: str) -> StoredReport:
    """A report out of its JSON values.

    Args:
        value: the parsed file.
        what: names it in messages.

    Raises:
        MalformedModel: no report, one of another version of the schema, or a value of another kind.
    """
    root = JsonValue(value, what)
    root.mapping()
    version = root["schema_version"].value
    if version != SCHEMA_VERSION:
        raise MalformedModel(
            f"{what} is no report of this version of flowopt",
            why=f"schema_version is {version!r}, not {SCHEMA_VERSION}"
            if version is not None
            else "it has no schema_version",
            hint="write a new one: flowopt optimize leaves report.json in the artifact's folder",
        )
    before, after = root["parameter_bytes"].items(exactly=2)
    return StoredReport(
        outcome=root["outcome"].text(),
        target=root["target"].text(),
        source=root["source"].text(),
        pipeline=root["pipeline"].text(default=""),
        passes=tuple(_pass(one) for one in root["passes"].items()),
        census_after=root["census_after"].counts(),
        census_lowered=root["census_lowered"].counts(),
        parameter_bytes=(before.integer(), after.integer()),
        lowered=tuple(_verdict(one) for one in root["lowered"].items()),
        runtime_level=root["runtime"]["level"].text(default=""),
        interface=root["interface"].mapping(),
        warnings=tuple(one.text() for one in root["warnings"].items()),
        versions={name: root["versions"][name].text() for name in root["versions"].mapping()},
        loop=None if root["loop"].value is None else _loop(root["loop"]),
        adaptation=None if root["adaptation"].value is None else _adaptation(root["adaptation"]),
        step=_step(root, what),
    )


def _step(root: JsonValue, what: str) -> StoredStep | None:
    recurrence = stored_recurrence(root.value, what=what)
    if recurrence is None:
        return None
    verdict = root["recurrence"]["verdict"]
    return StoredStep(recurrence, () if verdict.value is None else _figures(verdict))


def _loop(one: JsonValue) -> StoredLoop:
    return StoredLoop(one["sampler"].text(), one["evaluations"].integer(), one["state"].integer(), one["form"].text())


def _adaptation(one: JsonValue) -> StoredAdaptation:
    decisions = [norm["decision"].text() for norm in one["norms"].items()]
    # Reports that are older than linearization have no layers.
    layers = [] if one["layers"].value is None else [each["decision"].text() for each in one["layers"].items()]
    *_, last = one["stages"].items(at_least=1)
    return StoredAdaptation(
        method=one["method"].text(),
        norms=len(decisions),
        swapped=decisions.count(SWAPPED),
        data=one["data"].text(),
        held_out=one["held_out"].integer(),
        agreement=tuple(_agreement(output) for output in last["agreement"].items()),
        metric=one["metric"].text(),
        metrics=(one["original_metric"].number_or_none(), last["metric"].number_or_none()),
        layers=len(layers),
        linearized=layers.count(SWAPPED),
    )


def _agreement(one: JsonValue) -> StoredAgreement:
    top1 = one["top1"].number_or_none()
    return StoredAgreement(one["output"].text(), one["cosine"].number(), one["relative_error"].number(), top1)


def _pass(one: JsonValue) -> StoredPass:
    return StoredPass(
        name=one["name"].text(),
        outcome=one["outcome"].text(),
        reason=one["reason"].text(),
        applied=tuple(site["site"].text() for site in one["applied"].items()),
        refused={site["site"].text(): site["code"].text() for site in one["refused"].items()},
    )


def _verdict(one: JsonValue) -> StoredVerdict:
    verdict = one["verdict"]
    return StoredVerdict(one["level"].text(), verdict["outcome"].text(), _figures(verdict))


def _figures(verdict: JsonValue) -> tuple[StoredFigure, ...]:
    return tuple(
        StoredFigure(f["output"].text(), f["case"].text(), f["ratio"].number()) for f in verdict["figures"].items()
    )
