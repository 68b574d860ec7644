"""Values inside a teacher and a student, for fits that look at one place at a time."""

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from flowopt.errors import UserError
from flowopt.ir.evaluate import evaluate
from flowopt.program.program import Program
from flowopt.recovery.data.batch_axis import BatchAxis
from flowopt.recovery.padding import real_tokens
from flowopt.recovery.trainable import Trainable, device_of

Inputs = Mapping[str, Tensor]


def teacher_values(teacher: Program, inputs: Inputs, names: Collection[str]) -> dict[str, Tensor]:
    """Values of the named nodes, without autograd; the inputs are where the teacher is.

    Raises:
        UserError: the inputs do not fit.
    """
    found: dict[str, Tensor] = {}

    def observe(node: fx.Node, value: Any) -> None:
        if node.name in names:
            found[node.name] = value

    evaluate(teacher.graph, teacher.read, teacher.bind((), inputs), raised=teacher.raised, observe=observe)
    return found


def placed(student: Trainable, inputs: Inputs) -> dict[str, Tensor]:
    """The inputs where the student is."""
    device = device_of(student)
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def padding_mask(student: Trainable, inputs: Inputs, padding: str | None) -> Tensor | None:
    """(batch, tokens), True where a token is padding; None where no padding is known."""
    name = padding or student.padding
    return None if name is None else ~real_tokens(inputs, name)


@contextlib.contextmanager
def steady(student: Trainable) -> Iterator[None]:
    """Within it, the leaves compute fixed scales and shifts: their statistics stay. Then all is as it was."""
    modes = {module: module.training for module in student.modules()}
    student.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def parted(
    batches: Sequence[Inputs], held_out: Sequence[Inputs] | None, axis: BatchAxis | None
) -> tuple[Sequence[Inputs], Sequence[Inputs]]:
    """Batches to fit to, and others to judge by.

    Args:
        batches: inputs by name.
        held_out: to judge by; None: the last quarter of the batches, or of the samples where there is one batch.
        axis: of the samples, if there is one.

    Raises:
        UserError: no batches for either, or one that cannot be parted.
    """
    has_one = len(batches) > 0
    if held_out is None and len(batches) == 1 and axis is not None:
        batches = _parts(batches[0], axis)
    if held_out is None:
        count = max(1, len(batches) // 4)
        batches, held_out = batches[:-count], batches[-count:]
    if not batches or not held_out:
        given = "there is a single batch for calibration, which cannot be parted" if has_one else "there is no batch"
        takes = "" if axis is None else f"; the model takes {axis} samples at a time"
        raise UserError(
            "a fit needs samples to be judged by, beside those that it is fitted to",
            why=given + takes,
            hint="more data, more batches for calibration (--calibration 16), or recovery without ridge, match and "
            "transfer (--recover distill, or none)",
        )
    return batches, held_out


def _parts(batch: Inputs, axis: BatchAxis) -> Sequence[Inputs]:
    """The batch without its last quarter, and that; the batch itself where the model does not take both."""
    samples = min(map(len, batch.values()))
    judged = max(1, axis.low, samples // 4)
    if not axis.takes(samples - judged) or not axis.takes(judged) or samples - judged < 1:
        return [batch]
    first = {name: tensor[:-judged] for name, tensor in batch.items()}
    return [first, {name: tensor[-judged:] for name, tensor in batch.items()}]


def require_common_nodes(student: Trainable, teacher: Program, names: Collection[str]) -> None:
    """Both programs have the named nodes.

    Raises:
        UserError: one has not.
    """
    for title, graph in (("student", student.program.graph), ("teacher", teacher.graph)):
        absent = sorted(set(names) - {node.name for node in graph.nodes})
        if absent:
            raise UserError(
                f"the {title} has no node {absent[0]!r}",
                hint="make the student of the teacher's own program, so that their nodes have the same names",
            )


def no_grad_walk(student: Trainable, inputs: Inputs, names: Collection[str]) -> dict[str, Tensor]:
    """Values of the student's named nodes, without autograd; the inputs are where the student is."""
    with torch.no_grad():
        seen: dict[str, Tensor] = student(inputs, observe=names)[1]
    return seen
