"""The user's metric: accuracy on labels, or a function of theirs."""

from collections.abc import Mapping, Sequence
from typing import Final, final

from torch import Tensor

from flowopt.errors import UserError
from flowopt.program.loading.imported import IMPORTED_NAME, called, imported_function
from flowopt.workflows.adapting.agreement import Metric, Outputs

_ACCURACY: Final = "accuracy"
_RETURNS: Final = "a number: the metric's mean over the batch's samples"
_BRIEF: Final = "float((outputs['logits'].argmax(-1) == batch['labels']).float().mean())"


def metric_of(given: str | Metric | None, outputs: Sequence[str]) -> tuple[str, Metric | None]:
    """The metric's name, and what computes it.

    Args:
        given: ``accuracy:ARRAY`` (of the first output that counts, against the data's array of class numbers),
            ``package.module:function``, a function ``(outputs, original outputs, batch's arrays) -> number``, or None.
        outputs: the floating ones that count, at least one.

    Raises:
        UserError: another text.
        ModelNotFound: no such module or function.
    """
    if given is None:
        return "", None
    if not isinstance(given, str):
        return getattr(given, "__name__", "metric"), given
    kind, _, array = given.partition(":")
    if kind == _ACCURACY:
        if not array:
            raise UserError("accuracy of what?", hint="accuracy:labels, with the name of an array in the data")
        return _ACCURACY, _Accuracy(outputs[0], array)
    if IMPORTED_NAME.fullmatch(given) is None:
        raise UserError(f"the metric {given!r} is not known", hint="accuracy:labels, or package.module:function")
    function: Metric = imported_function(given, _RETURNS, _BRIEF)

    def metric(outputs: Outputs, original: Outputs, batch: Mapping[str, Tensor], /) -> float | Tensor:
        found: float | Tensor = called(given, lambda: function(outputs, original, batch))
        return found

    return given, metric


@final
class _Accuracy:
    """Share of rows whose largest logit is the labelled class; labels below 0 do not count, as in losses of torch."""

    def __init__(self, output: str, array: str) -> None:
        self._output, self._array = output, array

    def __call__(self, outputs: Outputs, original: Outputs, batch: Mapping[str, Tensor], /) -> float:
        if self._array not in batch:
            raise UserError(
                f"the data has no array {self._array!r}, which accuracy is measured against",
                hint=f"it has {', '.join(batch)}",
            )
        labels, logits = batch[self._array], outputs[self._output]
        if labels.shape != logits.shape[:-1]:
            raise UserError(
                f"{self._array} has the sizes {list(labels.shape)}, and {self._output} {list(logits.shape)}",
                hint="labels are class numbers, one for each row of logits",
            )
        counts = labels >= 0
        return float((logits.argmax(-1) == labels)[counts].double().mean())

    def weight(self, batch: Mapping[str, Tensor], /) -> int:
        """Rows that are labelled."""
        return int((batch[self._array] >= 0).sum()) if self._array in batch else 1
