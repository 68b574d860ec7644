"""How far an adapted model is from the original on data that recovery never saw."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

import torch
from torch import Tensor

from flowopt.errors import UserError
from flowopt.recovery.data.batch import Batch
from flowopt.recovery.padding import real_tokens
from flowopt.report.adaptation import Agreement

Outputs = Mapping[str, Tensor]
Run = Callable[[Mapping[str, Tensor]], Outputs]


class Metric(Protocol):
    """The user's figure of one batch, a mean over its samples; the larger the better."""

    def __call__(self, outputs: Outputs, original: Outputs, batch: Mapping[str, Tensor], /) -> float | Tensor: ...


@runtime_checkable
class Weighted(Protocol):
    """A metric whose batches do not count by their samples."""

    def weight(self, batch: Mapping[str, Tensor], /) -> int: ...


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
        padding: the input [batch, tokens] that marks padding, as for ``real_tokens``.
        metric: gets the candidate's outputs, the original's, and the batch: its inputs and what else is in it.

    Raises:
        UserError: no batches, or a metric that is no number.
    """
    sums = {name: _Sums() for name in outputs}
    total, original_total, samples, counted = 0.0, 0.0, 0, 0
    with torch.no_grad():
        for batch in batches:
            found, known = candidate(batch.inputs), original(batch.inputs)
            real = None if padding is None else real_tokens(batch.inputs, padding)
            for name, summed in sums.items():
                summed.add(found[name], known[name], real)
            samples += batch.samples
            if metric is not None:
                arrays = {**batch.inputs, **batch.extra}
                weight = metric.weight(arrays) if isinstance(metric, Weighted) else batch.samples
                # Where nothing counts, there is no mean to take a share of.
                if weight:
                    total += weight * _number(metric(found, known, arrays))
                    original_total += weight * _number(metric(known, known, arrays))
                counted += weight
    if not samples:
        raise UserError("there is no held-out data to measure on", hint="give more samples, or --held-out FILE")
    agreement = tuple(summed.agreement(name) for name, summed in sums.items())
    if metric is None:
        return Measured(agreement, None, None)
    if not counted:
        raise UserError("the metric counts nothing in the held-out data", hint="look at its labels")
    return Measured(agreement, total / counted, original_total / counted)


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
            # Not min(): a NaN is the worst there is, wherever it stands.
            self.worst = float(torch.tensor([self.worst, float(cosines.min())], dtype=torch.float64).min())
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
