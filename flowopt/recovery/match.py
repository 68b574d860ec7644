"""Layer-wise matching: train what is local to one swapped norm until the values around it are the teacher's.

Local are the leaf's own parameters and the linear layers that read the norm. The values are those layers' outputs, and
the norm's own where anything else reads it, such as a residual addition. What the leaf reads does not depend on any of
them, so that it is computed once for all steps: a step costs a leaf and its layers rather than a model.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from flowopt.errors import UserError
from flowopt.ir.evaluate import Value, called
from flowopt.ir.metadata import module_path
from flowopt.program.program import Program
from flowopt.recovery.counted_rows import counted_rows, rows_of
from flowopt.recovery.data.batch_axis import batch_axis
from flowopt.recovery.norm_readers import NormReaders, norm_readers, own_parameter
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
from flowopt.recovery.trainable import Trainable


@dataclass(frozen=True, slots=True)
class Matched:
    """What matching did to one norm.

    Attributes:
        norm: name of the node whose value the leaf gives.
        module: path of the module that the norm came from, for people.
        values: names of the nodes whose values were matched.
        before: relative error on the batches that were not trained on: the root of the mean, over these values, of
            ``sum |student - teacher|^2 / sum |teacher - mean|^2``.
        after: the same after the last step.
        is_kept: whether the trained parameters are in place: only where ``after`` is below ``before``.
    """

    norm: str
    module: str | None
    values: tuple[str, ...]
    before: float
    after: float
    is_kept: bool


def match_layers(
    student: Trainable,
    teacher: Program,
    batches: Sequence[Inputs],
    *,
    steps: int = 100,
    lr: float = 1e-3,
    padding: str | None = None,
    seed: int = 0,
    norms: Collection[str] | None = None,
    held_out: Sequence[Inputs] | None = None,
    massive: float = 10.0,
    on_progress: Callable[[str], None] = lambda _: None,
) -> tuple[Matched, ...]:
    """Match swapped norms one after another in graph order, each on what the student gives it by then.

    The leaves compute fixed scales and shifts meanwhile: their statistics stay. Values around a norm are kept in memory
    for all batches.

    Args:
        student: its leaves, and the linear layers that read them, are changed.
        teacher: of the same nodes, on the student's device.
        batches: inputs by name; each step takes one, in an order that follows from the seed.
        steps: of Adam, for each norm.
        lr: its learning rate.
        padding: name of an input [batch, tokens] that is 1 (or True) where a token is real; the student's by default.
        seed: of the order of batches, 0 or more.
        norms: names of norms; by default all whose leaf is in place. Leaves of attention are no norms.
        held_out: batches to judge by; by default the last quarter of ``batches``, or of the samples of a single one,
            which is then not trained on.
        massive: vectors that many times as long as the median one do not count.
        on_progress: gets one line for each norm.

    Returns:
        One result for each norm, in graph order.

    Raises:
        UserError: nothing to train on or to judge by, or a norm without a leaf in place.
    """
    trained, judged = parted(batches, held_out, batch_axis(teacher.interface))
    absent = sorted(set(norms or ()) - student.norms)
    if absent:
        raise UserError(
            f"no leaf is in the place of the norm {absent[0]!r}", hint=f"leaves: {', '.join(sorted(student.norms))}"
        )
    nodes = sorted(student.program.node(name) for name in (student.norms if norms is None else set(norms)))
    found: list[Matched] = []
    for at, node in enumerate(nodes):
        with steady(student):
            place = _Place(student, teacher, norm_readers(student, node.name), padding, massive)
            order = torch.Generator().manual_seed(seed + at)
            matched = place.matched([place.case(b) for b in trained], [place.case(b) for b in judged], steps, lr, order)
        on_progress(f"{matched.module or matched.norm}: {matched.before:.3g} -> {matched.after:.3g}")
        found.append(matched)
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Case:
    """Around one norm, on one batch: the leaf's arguments, what else is read, what is wanted, and which rows count."""

    arguments: tuple[tuple[Any, ...], Mapping[str, Any]]
    around: Mapping[fx.Node, Value]
    wanted: Mapping[fx.Node, Tensor]
    counted: Mapping[fx.Node, Tensor]


class _Place:
    """One norm and what reads it."""

    def __init__(
        self, student: Trainable, teacher: Program, readers: NormReaders, padding: str | None, massive: float
    ) -> None:
        self._student, self._teacher, self._padding, self._massive = student, teacher, padding, massive
        self._norm, self._leaf = readers.norm, student.leaves[readers.norm.name]
        self._axis: int = getattr(self._leaf, "channel_axis", -1)
        self._region = sorted({*readers.path, *readers.layers})
        # Without a layer to match, the norm's own value is all there is.
        own = (readers.norm,) if readers.others or not readers.layers else ()
        self._values = (*own, *readers.layers)
        inside = {self._norm, *self._region}
        self._around = {
            source for node in self._region for source in node.all_input_nodes if source.op != "get_attr"
        } - inside
        layers = [own_parameter(student, stored) for layer in readers.layers for stored in layer.args[1:]]
        self._parameters = [p for p in (*self._leaf.parameters(), *layers) if p is not None and p.requires_grad]
        require_common_nodes(student, teacher, [node.name for node in self._values])

    def case(self, batch: Inputs) -> _Case:
        """What one walk of both models gives."""
        given = placed(self._student, batch)
        calls: list[tuple[tuple[Any, ...], Mapping[str, Any]]] = []
        hook = self._leaf.register_forward_pre_hook(
            lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
        )
        with hook:
            around = no_grad_walk(self._student, given, [self._norm.name, *(node.name for node in self._around)])
        wanted = teacher_values(self._teacher, given, [node.name for node in self._values])
        case = _Case(
            calls[0],
            {node: around[node.name] for node in self._around},
            {node: self._rows(node, wanted[node.name]) for node in self._values},
            {},
        )
        masked = padding_mask(self._student, given, self._padding)
        with torch.no_grad():
            computed = self._computed(case)
        counted: dict[fx.Node, Tensor] = {}
        for node in self._values:
            read: Any = node if node is self._norm else node.args[0]
            axis = self._axis if read is self._norm else -1
            counted[node] = counted_rows(computed[read], masked, self._massive, axis)
        return _Case(case.arguments, case.around, case.wanted, counted)

    def matched(
        self, trained: Sequence[_Case], judged: Sequence[_Case], steps: int, lr: float, order: torch.Generator
    ) -> Matched:
        before = self._error(judged)
        kept = [parameter.detach().clone() for parameter in self._parameters]
        self._train(trained, steps, lr, order)
        after = self._error(judged)
        if not after < before:
            with torch.no_grad():
                for parameter, value in zip(self._parameters, kept, strict=True):
                    parameter.copy_(value)
        names = tuple(node.name for node in self._values)
        module = module_path(self._norm) or None
        return Matched(self._norm.name, module, names, before, after, after < before)

    def _train(self, cases: Sequence[_Case], steps: int, lr: float, order: torch.Generator) -> None:
        scales = self._energies(cases)
        optimizer = torch.optim.Adam(self._parameters, lr)
        waiting: list[int] = []
        for _ in range(steps):
            waiting = waiting or torch.randperm(len(cases), generator=order).tolist()
            case = cases[waiting.pop()]
            errors = self._squared_errors(case)
            rows = {node: max(1, int(case.counted[node].sum())) for node in self._values}
            loss = torch.stack([errors[node] / rows[node] / scales[node] for node in self._values]).mean()
            gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True)
            for parameter, gradient in zip(self._parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
        for parameter in self._parameters:
            parameter.grad = None

    def _error(self, cases: Sequence[_Case]) -> float:
        scales = self._energies(cases)
        with torch.no_grad():
            errors = [self._squared_errors(case) for case in cases]
        rows = {node: sum(int(case.counted[node].sum()) for case in cases) for node in self._values}
        shares = [sum(float(e[node]) for e in errors) / max(rows[node], 1) / scales[node] for node in self._values]
        return float((sum(shares) / len(shares)) ** 0.5)

    def _energies(self, cases: Sequence[_Case]) -> dict[fx.Node, float]:
        """How much each wanted value varies: a row's mean squared distance from the mean row."""
        found: dict[fx.Node, float] = {}
        for node in self._values:
            rows = torch.cat([case.wanted[node][case.counted[node]] for case in cases]).double()
            if not len(rows):
                raise UserError("no calibration batch has a token that counts", hint="look at the padding mask")
            varies = float((rows - rows.mean(0)).square().sum(1).mean())
            found[node] = max(varies, torch.finfo(torch.float64).tiny)
        return found

    def _squared_errors(self, case: _Case) -> dict[fx.Node, Tensor]:
        computed = self._computed(case)
        found: dict[fx.Node, Tensor] = {}
        for node in self._values:
            counted = case.counted[node]
            difference = self._rows(node, computed[node])[counted].double() - case.wanted[node][counted].double()
            found[node] = difference.square().sum()
        return found

    def _computed(self, case: _Case) -> dict[fx.Node, Value]:
        args, kwargs = case.arguments
        values: dict[fx.Node, Value] = {**case.around, self._norm: self._leaf(*args, **kwargs)}

        def lookup(node: fx.Node) -> Value:
            return values[node] if node in values else self._student.tensors.read(str(node.target))

        for node in self._region:
            values[node] = called(node, lookup, raised=False)
        return values

    def _rows(self, node: fx.Node, value: Tensor) -> Tensor:
        return rows_of(value, self._axis if node is self._norm else -1)
