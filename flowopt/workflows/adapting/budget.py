"""Limits that a user sets on what adaptation may cost, measured on held-out data."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from flowopt.errors import UserError
from flowopt.report.adaptation import Stage


@dataclass(frozen=True, slots=True)
class QualityBudget:
    """What the adapted model may cost; what is set must hold for every output that counts.

    Attributes:
        min_cosine: smallest mean cosine similarity of output rows with the original's.
        min_agreement: smallest share of rows whose largest element stays where it was, 0 to 1.
        max_error: largest relative error of an output, over all rows.
        max_drop: by how much the user's metric may fall below the original's, in the metric's own unit.
    """

    min_cosine: float | None = None
    min_agreement: float | None = None
    max_error: float | None = None
    max_drop: float | None = None

    def __post_init__(self) -> None:
        for name in ("min_cosine", "min_agreement"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"{name}={value} is a number from 0 to 1", hint="such as 0.99")
        for name in ("max_error", "max_drop"):
            value = getattr(self, name)
            if value is not None and not (value >= 0 and math.isfinite(value)):
                raise UserError(f"{name}={value} is a number from 0", hint="such as 0.005")

    def limits(self) -> Mapping[str, float]:
        """Those that are set, by name."""
        named = {
            "min_cosine": self.min_cosine,
            "min_agreement": self.min_agreement,
            "max_error": self.max_error,
            "max_drop": self.max_drop,
        }
        return {name: value for name, value in named.items() if value is not None}

    def require_measurable(self, rows: Mapping[str, int | str], *, has_metric: bool) -> None:
        """Refuse limits on what will not be measured, before anything is trained.

        Args:
            rows: elements of a row, which is the last axis, by output that counts.
            has_metric: whether there is a metric of the user's.

        Raises:
            UserError: a limit on the metric, and there is none; or one on the elements of rows of one.
        """
        if self.max_drop is not None and not has_metric:
            raise _no_metric()
        if any(size != 1 for size in rows.values()):
            return
        for name in ("min_agreement", "min_cosine"):
            if getattr(self, name) is not None:
                raise UserError(
                    f"{name} compares the elements of rows, and those of {', '.join(rows)} have one",
                    why="its largest element is always the same, and its cosine no more than a sign",
                    hint="max_error, or a metric and max_drop",
                )

    def broken(self, stage: Stage, original_metric: float | None) -> tuple[str, ...]:
        """What a stage does not keep, in words.

        Raises:
            UserError: a limit on the metric, and there is none.
        """
        said: list[str] = []
        for one in stage.agreement:
            # Not "<": a NaN keeps no limit.
            if self.min_cosine is not None and not one.cosine >= self.min_cosine:
                said.append(f"{one.output}: mean cosine {one.cosine:.4f}, {self.min_cosine:g} is the least")
            if self.min_agreement is not None and one.top1 is not None and not one.top1 >= self.min_agreement:
                said.append(f"{one.output}: top-1 agreement {one.top1:.2%}, {self.min_agreement:.2%} is the least")
            if self.max_error is not None and not one.relative_error <= self.max_error:
                said.append(f"{one.output}: relative error {one.relative_error:.4g}, {self.max_error:g} is the most")
        if self.max_drop is None:
            return tuple(said)
        if stage.metric is None or original_metric is None:
            raise _no_metric()
        drop = original_metric - stage.metric
        if not drop <= self.max_drop:
            said.append(f"the metric fell by {drop:.4g}, {self.max_drop:g} is the most")
        return tuple(said)


def _no_metric() -> UserError:
    return UserError("max_drop limits a metric, and none was given", hint="--metric accuracy:labels")
