"""What ``adapt`` decided and measured: norms or attentions, agreement with the original by stage, the comparison."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flowopt.report.attention_record import AttentionRecord
from flowopt.report.bench import Ratio

SWAPPED = "swapped"
REFUSED = "refused"
LEFT = "left"
KEPT = "kept"


@dataclass(frozen=True, slots=True)
class NormRecord:
    """One norm of the model: what calibration saw of it, and what became of it.

    Attributes:
        position: among the model's norms, from 0.
        site: node whose value the norm's readers see.
        module: module path; None where it is not known.
        kind: ``layer``, ``rms``, ``group`` or ``batch``.
        placement: of its residual stream: ``pre``, ``post``, ``peri``, ``mixed`` or ``none``.
        channels: number of them.
        score: relative error of the best fixed scale, 0 to 1: how much the norm's divisor varies over tokens; of an
            RMS norm, where that takes the norm's place, infinite for what is no layer norm.
        massive_ratio: largest standard deviation of a token over the median.
        massive: tokens that were left out because theirs was too many times the median.
        tokens: those that were counted.
        saved_bytes: what the norm reads and writes in one run at the captured sizes, which is no longer moved when what
            replaces it folds away; 0 where an RMS norm does, which stays.
        decision: ``swapped``, ``refused`` or ``left`` (not asked for).
        reason: why it was refused, with the code first; empty otherwise.
        errors: by stage, the relative error of the norm's value on held-out data.
    """

    position: int
    site: str
    module: str | None
    kind: str
    placement: str
    channels: int
    score: float
    massive_ratio: float
    massive: int
    tokens: int
    saved_bytes: int
    decision: str
    reason: str = ""
    errors: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Agreement:
    """One output beside the original's on held-out data. A row is the last axis; rows at padding do not count.

    Attributes:
        output: its name.
        rows: that were compared.
        cosine: mean cosine similarity of the rows.
        worst_cosine: the smallest.
        relative_error: root mean square of the difference over that of the original.
        top1: share of rows whose largest element stays where it was; None for rows of one element.
    """

    output: str
    rows: int
    cosine: float
    worst_cosine: float
    relative_error: float
    top1: float | None


@dataclass(frozen=True, slots=True)
class Stage:
    """The model at one point of the adaptation.

    Attributes:
        name: such as ``swapped``, ``ridge``, ``distilled``; ``uncalibrated`` is the same swap without calibration.
        agreement: of every output that counts, with the original.
        metric: the user's, on held-out data; None without one.
        seconds: that this stage took.
        notes: what it did, in words.
    """

    name: str
    agreement: tuple[Agreement, ...]
    metric: float | None = None
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Comparison:
    """The artifact beside the original's, both rewritten by the exact passes and lowered to the same target.

    Attributes:
        sizes: of the free dimensions.
        original_ms: median milliseconds of one call of the original's artifact.
        adapted_ms: of the adapted one.
        ratio: adapted over original, with its 95 % interval.
        stored_bytes: of weights, original and adapted.
        activation_bytes: that live at once at these sizes, original and adapted.
    """

    sizes: Mapping[str, int]
    original_ms: float
    adapted_ms: float
    ratio: Ratio
    stored_bytes: tuple[int, int]
    activation_bytes: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Adaptation:
    """An approximate change of a trained model, recovered and measured on data that recovery never saw.

    Attributes:
        method: such as ``swap-norm to unified`` or ``recalibrate-batch-norm by alpha-bn``.
        data: where calibration and training data came from, in words.
        held_out: samples that recovery never saw; None where nobody has counted them: of a stream, after a dry run.
        norms: every norm of the model; none for a recalibration or a linearization.
        stages: in order; the last is what was kept.
        original_metric: the user's metric of the original on the same held-out data; None without one.
        metric: name of the user's metric.
        settings: of calibration and recovery, to repeat it.
        budget: limits that were asked for, by name.
        broken: those of them that the last stage does not keep, in words; empty: it is within its budget.
        tried: of a selection, the alternatives and their figure.
        losses: (step, validation loss) of distillation: on samples that are neither trained on nor held out.
        notes: what a reader should know.
        comparison: latency and memory beside the original; None where it was not measured.
        layers: every attention of the model, of a linearization.
    """

    method: str
    data: str
    held_out: int | None
    norms: tuple[NormRecord, ...]
    stages: tuple[Stage, ...] = ()
    original_metric: float | None = None
    metric: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    budget: Mapping[str, float] = field(default_factory=dict)
    broken: tuple[str, ...] = ()
    tried: Mapping[str, float] = field(default_factory=dict)
    losses: tuple[tuple[int, float], ...] = ()
    notes: tuple[str, ...] = ()
    comparison: Comparison | None = None
    layers: tuple[AttentionRecord, ...] = ()

    @property
    def swapped(self) -> tuple[NormRecord, ...]:
        """The norms that were replaced."""
        return tuple(norm for norm in self.norms if norm.decision == SWAPPED)

    @property
    def refused(self) -> tuple[NormRecord, ...]:
        """The norms that were asked for and are not replaced."""
        return tuple(norm for norm in self.norms if norm.decision == REFUSED)

    @property
    def linearized(self) -> tuple[AttentionRecord, ...]:
        """The attentions that were replaced."""
        return tuple(layer for layer in self.layers if layer.decision == SWAPPED)

    @property
    def refused_layers(self) -> tuple[AttentionRecord, ...]:
        """The attentions that were asked for and are not replaced."""
        return tuple(layer for layer in self.layers if layer.decision == REFUSED)

    @property
    def kept_softmax(self) -> tuple[AttentionRecord, ...]:
        """The attentions that keep softmax on purpose: a linear one would cost most there."""
        return tuple(layer for layer in self.layers if layer.decision == KEPT)

    def stage(self, name: str) -> Stage | None:
        """The stage of a name; None where it did not run."""
        return next((stage for stage in self.stages if stage.name == name), None)
