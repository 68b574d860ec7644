"""The number that a recovery makes small: how far the student is from its teacher on one batch."""

from collections.abc import Callable, Mapping
from typing import Final, final

import torch
from torch import Tensor, fx, nn

from flowopt.errors import UserError
from flowopt.ir.evaluate import Value, evaluate
from flowopt.program.program import Program
from flowopt.recovery.losses import Distance, cosine_distance, divergence, relative_error
from flowopt.recovery.padded_queries import padded_queries
from flowopt.recovery.padding import real_tokens
from flowopt.recovery.settings import RecoverySettings
from flowopt.recovery.trainable import Trainable, device_of, trained_parameters
from flowopt.recovery.user_loss import LOSSES, OutputLoss, Outputs, user_loss

# Swapped norms train with the statistics of a batch: what that does to a loss which was almost 0 is no divergence.
_NOISE: Final = 1e-2

_Loss = Callable[[Outputs, Outputs, Mapping[str, Tensor], Tensor | None], Tensor]


@final
class Objective(nn.Module):
    """The loss as a module around the student, so that gradients can be averaged where it is wrapped.

    Args:
        student: is trained.
        teacher: is run without gradients, in its own dtypes.
        settings: the loss, and what is compared.

    Attributes:
        noise: a loss that means nothing; 0 for the user's own, whose scale is not known.

    Raises:
        UserError: an output or a feature that the models do not have, or a loss that cannot be found.
    """

    def __init__(self, student: Trainable, teacher: Program, settings: RecoverySettings) -> None:
        super().__init__()
        self.student = student
        self._teacher = teacher
        self.noise = _NOISE if settings.loss in LOSSES else 0.0
        self._features = settings.features
        self._feature_weight = settings.feature_weight
        self._loss = _loss_of(settings, _compared(student.program, teacher, settings.outputs))
        for program, whose in ((student.program, "student"), (teacher, "teacher")):
            unknown = set(settings.features) - {node.name for node in program.graph.nodes}
            if unknown:
                raise UserError(f"the {whose} has no node {sorted(unknown)[0]!r} to compare")

    def forward(self, inputs: Mapping[str, Tensor], extra: Mapping[str, Tensor]) -> Tensor:
        """Loss of one batch, or of this process's share of it; a number that gradients can be taken of."""
        device = device_of(self.student)
        inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
        extra = {name: tensor.to(device) for name, tensor in extra.items()}
        wanted, wanted_features = self._taught(inputs)
        found, found_features = self.student(inputs, observe=self._features)
        padding = self.student.padding
        masked = None if padding is None else ~real_tokens(inputs, padding)
        loss = self._loss(found, wanted, extra, masked)
        if self._features:
            distances = [
                relative_error(found_features[name], wanted, self._masked(name, wanted, masked))
                for name, wanted in ((name, wanted_features[name]) for name in self._features)
            ]
            loss = loss + self._feature_weight * torch.stack(distances).mean()
        return loss

    def reads_all(self, inputs: Mapping[str, Tensor], extra: Mapping[str, Tensor]) -> bool:
        """Whether the loss of a batch depends on all that is trained, with the norms swapped that are now."""
        with torch.enable_grad():
            loss = self(inputs, extra)
        if not loss.requires_grad:
            return False
        gradients = torch.autograd.grad(loss, trained_parameters(self.student), allow_unused=True)
        return all(gradient is not None for gradient in gradients)

    def _masked(self, name: str, value: Tensor, masked: Tensor | None) -> Tensor | None:
        """The padding of a feature: of attention by its layout, which has heads where others have tokens."""
        if name not in self.student.attentions:
            return masked
        return padded_queries(self.student.program, name, value, self.student.padding, masked)

    def _taught(self, inputs: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        seen: dict[str, Tensor] = {}

        def observe(node: fx.Node, value: Value) -> None:
            if node.name in self._features:
                seen[node.name] = value

        teacher = self._teacher
        given = {i.name: teacher.read(i.state) for i in teacher.inputs if i.state is not None} | dict(inputs)
        values = evaluate(teacher.graph, teacher.read, given, observe=observe)
        return {o.name: v for o, v in zip(teacher.outputs, values, strict=True)}, seen


def _compared(student: Program, teacher: Program, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the outputs that are compared."""
    common = {o.name for o in student.outputs} & {o.name for o in teacher.outputs}
    floating = [o.name for o in teacher.outputs if o.dtype.is_floating_point and o.state is None and o.name in common]
    unknown = [name for name in wanted if name not in floating]
    if unknown or not floating:
        raise UserError(
            f"no output {unknown[0]!r} to compare" if unknown else "the model has no floating output to compare",
            hint=f"its floating outputs: {floating}" if floating else "give it one: logits, or an embedding",
        )
    return wanted or tuple(floating)


def _loss_of(settings: RecoverySettings, outputs: tuple[str, ...]) -> _Loss:
    if settings.loss not in LOSSES:
        return _of_user(user_loss(settings.loss))
    distances: tuple[Distance, ...] = (divergence(settings.temperature), relative_error, cosine_distance)
    return _mean_of(dict(zip(LOSSES, distances, strict=True))[settings.loss], outputs)


def _mean_of(distance: Distance, names: tuple[str, ...]) -> _Loss:
    def loss(found: Outputs, wanted: Outputs, extra: Mapping[str, Tensor], masked: Tensor | None) -> Tensor:
        del extra
        return torch.stack([distance(found[name], wanted[name], masked) for name in names]).mean()

    return loss


def _of_user(function: OutputLoss) -> _Loss:
    def loss(found: Outputs, wanted: Outputs, extra: Mapping[str, Tensor], masked: Tensor | None) -> Tensor:
        del masked
        return function(found, wanted, extra)

    return loss
