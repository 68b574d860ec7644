"""Attention transfer: train the maps of linear attention until it gives what softmax gives.

    minimise  sum over real queries |linear(q, k, v) - softmax(q, k, v)|^2 / sum |softmax(q, k, v)|^2

q, k, v are the teacher's, so that no layer's task depends on what another one has learnt: a walk of the teacher serves
all of them, and each is trained alone. Nothing but the parameters of the leaves is changed. Kept is what does better on
batches that it was not fitted to.

Source: Zhang et al., LoLCATs, arXiv:2410.10254, section 3.1.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flowopt.errors import UserError
from flowopt.ir.metadata import module_path
from flowopt.program.program import Program
from flowopt.recovery.data.batch_axis import batch_axis
from flowopt.recovery.defaults import TRANSFER_LEARNING_RATE, TRANSFER_STEPS
from flowopt.recovery.observed import (
    Inputs,
    padding_mask,
    parted,
    placed,
    require_common_nodes,
    steady,
    teacher_values,
)
from flowopt.recovery.padded_queries import padded_queries
from flowopt.recovery.trainable import Trainable

_KEPT_BYTES = 1 << 30
# Progress lines while the maps are trained.
_LINES = 10


@dataclass(frozen=True, slots=True)
class Transferred:
    """What the transfer did to one attention.

    Attributes:
        site: name of the node whose value the leaf gives.
        module: path of the module that the attention came from, for people.
        before: relative error on the batches that were not trained on, on the teacher's inputs, over real queries:
            ``sqrt(sum |linear - softmax|^2 / sum |softmax|^2)``.
        after: the same after the last step.
        is_kept: whether the trained parameters are in place: only where ``after`` is below ``before``.
    """

    site: str
    module: str | None
    before: float
    after: float
    is_kept: bool


def transfer_attention(
    student: Trainable,
    teacher: Program,
    batches: Sequence[Inputs],
    *,
    steps: int = TRANSFER_STEPS,
    lr: float = TRANSFER_LEARNING_RATE,
    seed: int = 0,
    sites: Collection[str] | None = None,
    held_out: Sequence[Inputs] | None = None,
    kept_bytes: int = _KEPT_BYTES,
    on_progress: Callable[[str], None] = lambda _: None,
) -> tuple[Transferred, ...]:
    """Train the leaves that stand for attention, all at once, each on its own.

    Args:
        student: the parameters of its leaves are changed. Queries at what it knows to be padding do not count.
        teacher: of the same nodes, on the student's device.
        batches: inputs by name; each step takes one, in an order that follows from the seed.
        steps: of Adam.
        lr: its learning rate at first, which falls to 0 along a cosine.
        seed: of the order of batches, 0 or more.
        sites: names of attentions; by default all whose leaf is in place.
        held_out: batches to judge by; by default the last quarter of ``batches``, or of the samples of a single one,
            which is then not trained on.
        kept_bytes: of what attention reads and gives; beyond it, the teacher runs again for each step.
        on_progress: gets a line now and then, and one for each attention.

    Returns:
        One result for each attention, in graph order.

    Raises:
        UserError: nothing to train on or to judge by, or an attention without a leaf in place.
    """
    trained, judged = parted(batches, held_out, batch_axis(teacher.interface))
    known = student.attentions
    names = sorted(known if sites is None else set(sites))
    absent = [name for name in names if name not in known]
    if absent:
        raise UserError(
            f"no leaf is in the place of the attention {absent[0]!r}", hint=f"leaves: {', '.join(sorted(known))}"
        )
    ordered = [node.name for node in sorted(student.program.node(name) for name in names)]
    require_common_nodes(student, teacher, [*ordered, *(one for name in ordered for one in student.sources(name))])
    layers = [_Layer(student, name) for name in ordered]
    seen = _Seen(student, teacher, ordered, kept_bytes)
    with steady(student):
        before = _errors(layers, seen, judged)
        kept = [[parameter.detach().clone() for parameter in layer.parameters] for layer in layers]
        _train(layers, seen, trained, steps, lr, torch.Generator().manual_seed(seed), on_progress)
        after = _errors(layers, seen, judged)
    found: list[Transferred] = []
    for layer, values in zip(layers, kept, strict=True):
        is_better = after[layer.name] < before[layer.name]
        if not is_better:
            with torch.no_grad():
                for parameter, value in zip(layer.parameters, values, strict=True):
                    parameter.copy_(value)
        one = Transferred(layer.name, layer.module, before[layer.name], after[layer.name], is_better)
        on_progress(f"{one.module or one.site}: {one.before:.3g} -> {one.after:.3g}")
        found.append(one)
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Case:
    """One batch: what attention reads and gives in the teacher, by name; and queries that count, None for all."""

    values: Mapping[str, Tensor]
    counted: Mapping[str, Tensor | None]

    @property
    def size(self) -> int:
        return sum(value.numel() * value.element_size() for value in self.values.values())


class _Layer:
    """One leaf beside the softmax attention that it stands for."""

    def __init__(self, student: Trainable, name: str) -> None:
        self.name = name
        self.module = module_path(student.program.node(name)) or None
        self._sources = student.sources(name)
        self._leaf: nn.Module = student.leaves[name]
        self.parameters = [p for p in self._leaf.parameters() if p.requires_grad]

    def squared_error(self, case: _Case) -> Tensor:
        """Over the queries that count."""
        found: Tensor = self._leaf(*(case.values[one] for one in self._sources))
        wanted = case.values[self.name]
        wide = torch.promote_types(wanted.dtype, torch.float32)
        return self._squares(found.to(wide) - wanted.to(wide), case)

    def energy(self, case: _Case) -> float:
        """Sum of the squares of what is wanted."""
        return float(self._squares(case.values[self.name].double(), case))

    def _squares(self, difference: Tensor, case: _Case) -> Tensor:
        counted = case.counted[self.name]
        squares = difference.square()
        # Not a product with the mask: what a query at padding gives may be anything.
        return (squares if counted is None else squares[counted]).sum(dtype=torch.float64)


class _Seen:
    """The teacher's values of batches, the first of them kept."""

    def __init__(self, student: Trainable, teacher: Program, names: Sequence[str], kept_bytes: int) -> None:
        self._student, self._teacher, self._names = student, teacher, names
        self._observed = {*names, *(one for name in names for one in student.sources(name))}
        self._left = kept_bytes
        self._kept: dict[int, _Case] = {}

    def case(self, batch: Inputs) -> _Case:
        """Of a batch that lives as long as this does."""
        if id(batch) in self._kept:
            return self._kept[id(batch)]
        given = placed(self._student, batch)
        values = teacher_values(self._teacher, given, self._observed)
        masked = padding_mask(self._student, given, None)
        case = _Case(values, {name: self._counted(name, values[name], masked) for name in self._names})
        if case.size <= self._left:
            self._left -= case.size
            self._kept[id(batch)] = case
        return case

    def _counted(self, name: str, value: Tensor, masked: Tensor | None) -> Tensor | None:
        padded = padded_queries(self._student.program, name, value, self._student.padding, masked)
        return None if padded is None else ~padded


def _errors(layers: Sequence[_Layer], seen: _Seen, batches: Sequence[Inputs]) -> dict[str, float]:
    errors, energies = dict.fromkeys((layer.name for layer in layers), 0.0), _energies(layers, seen, batches)
    with torch.no_grad():
        for batch in batches:
            case = seen.case(batch)
            for layer in layers:
                errors[layer.name] += float(layer.squared_error(case))
    return {name: math.sqrt(error / energies[name]) for name, error in errors.items()}


def _energies(layers: Sequence[_Layer], seen: _Seen, batches: Sequence[Inputs]) -> dict[str, float]:
    found = dict.fromkeys((layer.name for layer in layers), torch.finfo(torch.float64).tiny)
    for batch in batches:
        case = seen.case(batch)
        for layer in layers:
            found[layer.name] += layer.energy(case)
    return found


def _train(
    layers: Sequence[_Layer],
    seen: _Seen,
    batches: Sequence[Inputs],
    steps: int,
    lr: float,
    order: torch.Generator,
    on_progress: Callable[[str], None],
) -> None:
    learning = [layer for layer in layers if layer.parameters]
    if not learning:
        return
    energies = _energies(learning, seen, batches)
    # Adam looks at each parameter alone: one for all layers is one for each.
    optimizer = torch.optim.Adam([p for layer in learning for p in layer.parameters], lr)
    waiting: list[int] = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
        waiting = waiting or torch.randperm(len(batches), generator=order).tolist()
        case = seen.case(batches[waiting.pop()])
        total = 0.0
        for layer in learning:
            loss = layer.squared_error(case) * (len(batches) / energies[layer.name])
            gradients = torch.autograd.grad(loss, layer.parameters, allow_unused=True)
            for parameter, gradient in zip(layer.parameters, gradients, strict=True):
                parameter.grad = gradient
            total += float(loss.detach())
        optimizer.step()
        if (step + 1) % max(1, steps // _LINES) == 0:
            on_progress(f"transfer, step {step + 1} of {steps}: mean squared error {total / len(learning):.3g}")
    for layer in learning:
        for parameter in layer.parameters:
            parameter.grad = None
