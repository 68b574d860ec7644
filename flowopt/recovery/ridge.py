"""Refit the linear layers behind swapped norms in closed form.

    W', b' = argmin sum |W' x + b' - y|^2 + lambda |W' - W|^2

x is what the layer reads in the student, y what the layer gives in the teacher, before any activation. Layers are
fitted in graph order, each on what the student computes after the earlier ones have been refitted; layers that read one
value are fitted together.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from flowopt.errors import UserError
from flowopt.ir.metadata import module_path
from flowopt.program.program import Program
from flowopt.recovery.counted_rows import counted_rows, rows_of
from flowopt.recovery.data.batch_axis import batch_axis
from flowopt.recovery.moments import Moments, ridge_solution
from flowopt.recovery.norm_readers import LINEAR, is_own, norm_readers, own_parameter
from flowopt.recovery.observed import (
    Inputs,
    no_grad_walk,
    padding_mask,
    parted,
    placed,
    require_common_nodes,
    steady,
    teacher_values,
)
from flowopt.recovery.trainable import Trainable, device_of


@dataclass(frozen=True, slots=True)
class Refit:
    """What refitting did to one layer.

    Attributes:
        layer: name of its node.
        module: path of the module that it came from, for people.
        vectors: that were fitted to; padding and massive activations are not among them.
        before: relative error on the batches that were not fitted to: ``sqrt(sum |W x + b - y|^2 / sum |y - mean|^2)``.
        after: the same with the fitted weights.
        fitted_before: as ``before``, on the batches that were fitted to.
        fitted_after: as ``after``, on these.
        is_kept: whether the layer has the fitted weights now: only where ``after`` is below ``before``.
    """

    layer: str
    module: str | None
    vectors: int
    before: float
    after: float
    fitted_before: float
    fitted_after: float
    is_kept: bool


def refit_linears(
    student: Trainable,
    teacher: Program,
    batches: Sequence[Inputs],
    *,
    padding: str | None = None,
    ridge: float = 1e-3,
    layers: Collection[str] | None = None,
    held_out: Sequence[Inputs] | None = None,
    massive: float = 10.0,
    on_progress: Callable[[str], None] = lambda _: None,
) -> tuple[Refit, ...]:
    """Refit linear layers of the student, each kept only if it does better on batches that it was not fitted to.

    Both models run over all batches once for each group of layers that read one value. Sums are gathered in float64.

    Args:
        student: its weights are changed; its leaves run in eval mode meanwhile.
        teacher: of the same nodes, on the student's device.
        batches: inputs by name.
        padding: name of an input [batch, tokens] that is 1 (or True) where a token is real; the student's by default.
        ridge: lambda over the mean diagonal of the input's second moments; above 0.
        layers: names of linear layers; by default those that read a norm whose leaf is in place. Layers whose weights
            are stored for others too, or not trained, are passed over where they are not named.
        held_out: batches to judge by; by default the last quarter of ``batches``, or of the samples of a single one,
            which is then not fitted to.
        massive: vectors that many times as long as the median one do not count.
        on_progress: gets one line for each layer.

    Returns:
        One result for each layer, in graph order.

    Raises:
        UserError: nothing to fit to or to judge by, ``ridge`` not above 0, or a named layer that is none or is tied.
    """
    if not ridge > 0:
        raise UserError(f"ridge={ridge} must be above 0: without it the solution need not be unique")
    fitted, judged = parted(batches, held_out, batch_axis(teacher.interface))
    chosen = _named(student, layers) if layers is not None else _behind_norms(student)
    require_common_nodes(student, teacher, [layer.name for layer in chosen])
    found: list[Refit] = []
    with steady(student):
        for group in _groups(chosen):
            fit = _Group(student, teacher, group, padding, massive)
            for refit in fit.refitted(fit.moments(fitted), fit.moments(judged), ridge):
                on_progress(f"{refit.module or refit.layer}: {refit.before:.3g} -> {refit.after:.3g}")
                found.append(refit)
    return tuple(found)


class _Group:
    """Layers of one input, with a bias each or without."""

    def __init__(
        self, student: Trainable, teacher: Program, layers: Sequence[fx.Node], padding: str | None, massive: float
    ) -> None:
        self._student, self._teacher, self._layers = student, teacher, layers
        self._padding, self._massive = padding, massive
        self._source = str(layers[0].args[0])
        parameters = [[own_parameter(student, stored) for stored in layer.args[1:3]] for layer in layers]
        self._weights = [p[0].detach() for p in parameters if p[0] is not None]
        self._biases = [p[1].detach() for p in parameters if len(p) > 1 and p[1] is not None]

    def moments(self, batches: Sequence[Inputs]) -> Moments:
        weight = self._weight()
        total = Moments(weight.shape[1], weight.shape[0], device_of(self._student))
        names = [layer.name for layer in self._layers]
        for batch in batches:
            given = placed(self._student, batch)
            wanted = teacher_values(self._teacher, given, names)
            x = no_grad_walk(self._student, given, [self._source])[self._source]
            masked = padding_mask(self._student, given, self._padding)
            counted = counted_rows(x, masked, self._massive)
            y = torch.cat([rows_of(wanted[name]) for name in names], 1)
            total.add(rows_of(x)[counted], y[counted])
        if not total.count:
            raise UserError("no calibration batch has a token that counts", hint="look at the padding mask")
        return total

    def refitted(self, fitted: Moments, judged: Moments, ridge: float) -> list[Refit]:
        old = self._weight(), torch.cat(self._biases) if self._biases else None
        new = ridge_solution(fitted, *old, ridge)
        errors = [
            (total.squared_errors(*layer), total.energies()) for total in (judged, fitted) for layer in (old, new)
        ]
        return [self._refit(at, rows, new, errors, fitted.count) for at, rows in enumerate(self._rows())]

    def _refit(
        self,
        at: int,
        rows: slice,
        new: tuple[Tensor, Tensor | None],
        errors: Sequence[tuple[Tensor, Tensor]],
        count: int,
    ) -> Refit:
        before, after, fitted_before, fitted_after = (_relative(error[rows], energy[rows]) for error, energy in errors)
        if after < before:
            self._weights[at].copy_(new[0][rows])
            if new[1] is not None:
                self._biases[at].copy_(new[1][rows])
        layer = self._layers[at]
        module = module_path(layer) or None
        return Refit(layer.name, module, count, before, after, fitted_before, fitted_after, after < before)

    def _weight(self) -> Tensor:
        return torch.cat(self._weights)

    def _rows(self) -> list[slice]:
        ends = [0]
        for weight in self._weights:
            ends.append(ends[-1] + len(weight))
        return [slice(start, end) for start, end in zip(ends, ends[1:], strict=False)]


def _relative(errors: Tensor, energies: Tensor) -> float:
    """What is wrong, over what varies; errors of an output that never varies count in full."""
    return float((errors.sum() / energies.sum().clamp(min=torch.finfo(torch.float64).tiny)).sqrt())


def _groups(layers: Sequence[fx.Node]) -> list[list[fx.Node]]:
    groups: dict[tuple[Any, bool], list[fx.Node]] = {}
    for layer in layers:
        groups.setdefault((layer.args[0], len(layer.all_input_nodes) > 2), []).append(layer)
    return list(groups.values())


def _behind_norms(student: Trainable) -> list[fx.Node]:
    return sorted({layer for name in student.norms for layer in norm_readers(student, name).layers})


def _named(student: Trainable, names: Collection[str]) -> list[fx.Node]:
    nodes = {node.name: node for node in student.program.graph.nodes}
    for name in names:
        if name not in nodes or nodes[name].target is not LINEAR:
            known = [node.name for node in nodes.values() if node.target is LINEAR]
            raise UserError(f"{name!r} is no linear layer", hint=f"linear layers: {', '.join(known[:12])}")
        if not is_own(student, nodes[name]):
            raise UserError(
                f"{name!r} cannot be refitted alone",
                why="its weight or bias is not trained, or another operator reads it too",
                hint="leave it out",
            )
    return sorted(nodes[name] for name in set(names))
