"""How far an adapted model is from the original on data that recovery never saw."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, final

import torch
from torch import Tensor

from flowopt.errors import UserError
from flowopt.recovery.data.batch import Batch
from flowopt.report.adaptation import Agreement

Outputs = Mapping[str, Tensor]
Run = Callable[[Mapping[str, Tensor]], Outputs]


class Metric(Protocol):
    """The user's figure of one batch."""

    def __call__(self, outputs: Outputs, original: Outputs, batch: Mapping[str, Tensor], /) -> float | Tensor: ...


@dataclass(frozen=True, slots=True)
class Measured:
    """Agreement of every output, and the user's metric of both models."""

    agreement: tuple[Agreement, ...]
    metric: float | None
    original_metric: float | None


def measured_agreement(
    candidate: Run,
    original: Run,
    batches: Iterable[Batch],
    *,
    outputs: Collection[str],
    padding: str | None = None,
    metric: Metric | None = None,
) -> Measured:
    """Compare two models on batches; the metric is the mean over samples.

    Args:
        candidate: gives outputs by name for inputs by name.
        original: the same.
        batches: held-out ones.
        outputs: the floating ones that count.
        padding: name of the input [batch, tokens] that is not 0 where a token is real.
        metric: gets the candidate's outputs, the original's, and the batch: its inputs and what else is in it.

    Raises:
        UserError: no batches, or a metric that is no number.
    """
    sums = {name: _Sums() for name in outputs}
    total, original_total, samples = 0.0, 0.0, 0
    with torch.no_grad():
        for batch in batches:
            found, known = candidate(batch.inputs), original(batch.inputs)
            real = None if padding is None else batch.inputs[padding] != 0
            for name, summed in sums.items():
                summed.add(found[name], known[name], real)
            samples += batch.samples
            if metric is not None:
                arrays = {**batch.inputs, **batch.extra}
                total += batch.samples * _number(metric(found, known, arrays))
                original_total += batch.samples * _number(metric(known, known, arrays))
    if not samples:
        raise UserError("there is no held-out data to measure on", hint="give more samples, or --held-out FILE")
    agreement = tuple(summed.agreement(name) for name, summed in sums.items())
    if metric is None:
        return Measured(agreement, None, None)
    return Measured(agreement, total / samples, original_total / samples)


@final
@dataclass(slots=True)
class _Sums:
    rows: int = 0
    cosine: float = 0.0
    worst: float = math.inf
    squared_error: float = 0.0
    squared: float = 0.0
    same: int = 0
    has_choice: bool = False

    def add(self, found: Tensor, known: Tensor, real: Tensor | None) -> None:
        """One batch of one output; rows at padding are left out where the output has the mask's leading sizes."""
        if known.dim() == 0 or known.dim() == 1:
            found, known = found.reshape(-1, 1), known.reshape(-1, 1)
        if real is not None and known.dim() > real.dim() and known.shape[: real.dim()] == real.shape:
            found, known = found[real], known[real]
        left, right = found.double().flatten(0, -2), known.double().flatten(0, -2)
        cosines = torch.nn.functional.cosine_similarity(left, right, dim=-1)
        # Two rows of zeros agree.
        cosines = torch.where((left == right).all(-1), 1.0, cosines)
        self.rows += len(right)
        self.cosine += float(cosines.sum())
        if cosines.numel():
            self.worst = min(self.worst, float(cosines.min()))
        self.squared_error += float((left - right).square().sum())
        self.squared += float(right.square().sum())
        self.has_choice = right.shape[-1] > 1
        self.same += int((left.argmax(-1) == right.argmax(-1)).sum()) if right.numel() else 0

    def agreement(self, name: str) -> Agreement:
        """All batches together."""
        rows = max(self.rows, 1)
        relative = math.sqrt(self.squared_error / self.squared) if self.squared else math.inf
        if self.squared_error == 0:
            relative = 0.0
        top1 = self.same / rows if self.has_choice else None
        return Agreement(name, self.rows, self.cosine / rows, self.worst, relative, top1)


def _number(value: float | Tensor) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"the metric gave {type(value).__name__}, which is no number", hint="return a mean over the batch's samples"
        ) from error
