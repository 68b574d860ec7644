"""Optimizers: what decays, what is projected, and the learning rate of every step."""

import sys

import pytest
import torch
from torch import Tensor, nn

from flowopt.errors import MissingDependency
from flowopt.recovery.optimizers import clip_gradients, learning_rate, optimizer_of, step_of
from flowopt.recovery.settings import OptimizerName, RecoverySettings
from flowopt.recovery.trainable import Trainable
from tests.recovery.tiny_recovery import tiny_student
from tests.recovery.tiny_transformer import tiny_program

OPTIMIZERS: tuple[OptimizerName, ...] = ("adamw", "adamp", "sgdp")


def updated(
    name: OptimizerName, gradient: str, *, decay: float = 0.0, steps: int = 3
) -> dict[str, tuple[Tensor, Tensor]]:
    """Every parameter before and after steps with gradients of one kind: ``zero``, ``along`` or ``across`` the rows."""
    student = tiny_student(tiny_program())
    settings = RecoverySettings(optimizer=name, learning_rate=0.01, weight_decay=decay)
    optimizer = optimizer_of(student, settings)
    before = {key: p.detach().clone() for key, p in student.named_parameters()}
    for _ in range(steps):
        for parameter in student.parameters():
            parameter.grad = _gradient(parameter.detach(), gradient)
        step_of(optimizer)
    return {key: (before[key], p.detach()) for key, p in student.named_parameters()}


def _gradient(weight: Tensor, kind: str) -> Tensor:
    if kind == "zero":
        return torch.zeros_like(weight)
    if weight.dim() < 2:
        return torch.ones_like(weight)
    if kind == "along":
        return 1e4 * weight
    random = torch.randn(weight.shape, generator=torch.Generator().manual_seed(3), dtype=weight.dtype)
    rows, normals = random.flatten(1), nn.functional.normalize(weight.flatten(1))
    return (rows - normals * (rows * normals).sum(1, keepdim=True)).reshape(weight.shape)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_matrices_decay_and_vectors_do_not(name: OptimizerName) -> None:
    for before, after in updated(name, "zero", decay=0.1).values():
        assert torch.equal(before, after) == (before.dim() < 2)


def test_adamp_is_adamw_where_gradients_run_along_the_weights() -> None:
    adamw, adamp = updated("adamw", "along"), updated("adamp", "along")
    for name, (_, after) in adamw.items():
        # The package adds eps before it corrects the second moment, torch after: that shows in small gradients.
        torch.testing.assert_close(adamp[name][1], after, atol=1e-7, rtol=0.0)


def test_adamp_keeps_steps_across_the_weights_from_changing_their_length() -> None:
    adamw, adamp = updated("adamw", "across", steps=1), updated("adamp", "across", steps=1)
    key = "tensors./blocks/0/up/weight"
    before, after = adamp[key]
    rows, moved = before.flatten(1), (after - before).flatten(1)
    assert float((rows * moved).sum(1).abs().max()) < 1e-8  # the package divides by a norm that has eps added
    assert float((rows * (adamw[key][1] - before).flatten(1)).sum(1).abs().max()) > 1e-4


def test_a_leaf_that_comes_late_takes_a_first_step_of_its_own() -> None:
    student = tiny_student(tiny_program())
    optimizer = optimizer_of(student, RecoverySettings(optimizer="adamp", learning_rate=0.01))
    leaf = student.get_parameter("leaves.layer_norm.weight")
    before = leaf.detach().clone()
    for step in range(6):
        optimizer.zero_grad(set_to_none=True)
        for parameter in student.parameters():
            parameter.grad = torch.ones_like(parameter) if parameter is not leaf or step == 5 else None
        student.get_parameter("leaves.layer_norm.bias").grad = torch.ones(12).double() if step == 5 else None
        step_of(optimizer)
    # Adam's first step is the learning rate, whatever the gradient.
    torch.testing.assert_close(before - leaf.detach(), torch.full_like(before, 0.01), atol=1e-8, rtol=0.0)  # eps


def test_the_learning_rate_rises_and_falls_along_a_cosine() -> None:
    settings = RecoverySettings(steps=100, learning_rate=2.0, warmup=0.1, final_learning_rate=0.25)
    rates = [learning_rate(settings, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.2) and rates[9] == rates[10] == 2.0
    assert rates[55] == pytest.approx((2.0 + 0.5) / 2)
    assert rates[99] == pytest.approx(0.5, rel=1e-2)  # the next step would reach it
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_gradients_are_clipped_together() -> None:
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([2.0, 3.0]), torch.tensor([6.0])
    assert clip_gradients(parameters, 0.0) == 7.0 and float(parameters[1].grad) == 6.0
    assert clip_gradients(parameters, 3.5) == 7.0
    assert float(parameters[1].grad) == pytest.approx(3.0, rel=1e-5)  # torch adds 1e-6 to the norm


def test_a_missing_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    student = Trainable(tiny_program())
    with pytest.raises(MissingDependency, match="adamp comes from the package pytorch_optimizer") as caught:
        optimizer_of(student, RecoverySettings(optimizer="adamp"))
    assert "pip install 'flowopt[recovery]'" in str(caught.value)
