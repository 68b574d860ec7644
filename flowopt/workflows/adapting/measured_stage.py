"""An adapted model at one stage beside its original: agreement of outputs, and of the values that were replaced."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, fx

from flowopt.ir.evaluate import Value, evaluate
from flowopt.program.program import Program
from flowopt.recovery.data.batch import Batch
from flowopt.recovery.padded_queries import padded_queries
from flowopt.recovery.padding import padding_of, real_tokens
from flowopt.recovery.trainable import Trainable
from flowopt.report.adaptation import Stage
from flowopt.workflows.adapting.agreement import Metric, Outputs, measured_agreement


@dataclass(frozen=True, slots=True)
class MeasuredStage:
    """What was measured on held-out data.

    Attributes:
        stage: for the report.
        errors: relative error of each site's value over all batches, by site.
        original_metric: the user's metric of the original; None without one.
    """

    stage: Stage
    errors: Mapping[str, float]
    original_metric: float | None


def measured_stage(
    name: str,
    student: Trainable,
    original: Program,
    batches: Callable[[], Iterator[Batch]],
    *,
    sites: Collection[str],
    attentions: Collection[str] = (),
    outputs: Collection[str],
    metric: Metric | None,
    seconds: float,
    notes: Sequence[str],
    on_progress: Callable[[str], None],
) -> MeasuredStage:
    """Run both models on held-out batches.

    Args:
        name: of the stage.
        student: the adapted model; rows at what it knows to be padding do not count.
        original: of the same nodes.
        batches: held-out ones.
        sites: nodes whose values are compared; those that the student no longer has are passed over.
        attentions: those of the sites that are attention, (batch, heads, queries, features).
        outputs: that count.
        metric: the user's.
        seconds: that the stage took.
        notes: what it did.
        on_progress: gets one line.
    """
    on_progress(f"measuring: {name}")
    there = {node.name for node in student.program.graph.nodes}
    walks = _Walks(student, original, [site for site in sites if site in there], attentions)
    found = measured_agreement(
        walks.student_outputs,
        walks.original_outputs,
        batches(),
        outputs=outputs,
        padding=student.padding,
        metric=metric,
    )
    stage = Stage(name, found.agreement, found.metric, seconds, tuple(notes))
    return MeasuredStage(stage, walks.errors(), found.original_metric)


@final
class _Walks:
    """Both models on the same batches, and how far values of one are from those of the other."""

    def __init__(
        self, student: Trainable, original: Program, names: Sequence[str], attentions: Collection[str]
    ) -> None:
        self._student, self._original, self._names, self._attentions = student, original, names, attentions
        self._found: dict[str, Tensor] = {}
        self._sums: dict[str, tuple[float, float]] = {}

    def student_outputs(self, inputs: Mapping[str, Tensor]) -> Outputs:
        """Of one batch; the sites' values are kept for the original's."""
        found: tuple[Outputs, dict[str, Tensor]] = self._student(inputs, observe=self._names)
        outputs, self._found = found
        return outputs

    def original_outputs(self, inputs: Mapping[str, Tensor]) -> Outputs:
        """Of the same batch, which the student has seen."""
        program, padding = self._original, self._student.padding
        masked = None if padding is None else ~real_tokens(inputs, padding)

        def observe(node: fx.Node, value: Value) -> None:
            if node.name in self._found:
                self._add(node.name, self._found[node.name], value, masked)

        values = evaluate(program.graph, program.read, program.bind((), inputs), observe=observe)
        return {o.name: v for o, v in zip(program.outputs, values, strict=True)}

    def errors(self) -> dict[str, float]:
        """Relative error of each value over all batches, by site."""
        return {name: (error / square) ** 0.5 if square else 0.0 for name, (error, square) in self._sums.items()}

    def _add(self, name: str, found: Tensor, known: Tensor, masked: Tensor | None) -> None:
        padded = (
            padded_queries(self._original, name, known, self._student.padding, masked)
            if name in self._attentions
            else padding_of(known, masked)
        )
        if padded is not None:
            found, known = found[~padded], known[~padded]
        error, square = self._sums.get(name, (0.0, 0.0))
        off = torch.linalg.vector_norm((found - known).double()).item() ** 2
        self._sums[name] = error + off, square + torch.linalg.vector_norm(known.double()).item() ** 2
