"""Layers fitted from sums are those of a direct least-squares solution, and are judged as if vector by vector."""

import numpy as np
import pytest
import torch
from torch import Tensor

from flowopt.recovery.moments import Moments, ridge_solution

INPUTS, OUTPUTS, VECTORS = 7, 4, 60


def drawn(seed: int, *sizes: int) -> Tensor:
    return torch.randn(*sizes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def data() -> tuple[Tensor, Tensor]:
    """Correlated inputs far from zero, one of which is always 0."""
    x = drawn(1, VECTORS, INPUTS) @ drawn(2, INPUTS, INPUTS) + 3
    x[:, 2] = 0
    return x, x @ drawn(3, INPUTS, OUTPUTS) + drawn(4, VECTORS, OUTPUTS) - 5


def direct(x: Tensor, y: Tensor, weight: Tensor, ridge: float, *, intercept: bool) -> tuple[np.ndarray, np.ndarray]:
    """The penalty as further rows of the system, and the intercept as a column that has none."""
    centred = x - x.mean(0) if intercept else x
    penalty = ridge * float((centred.T @ centred).diagonal().mean())
    ones = np.ones((len(x), 1 if intercept else 0))
    system = np.block([[x.numpy(), ones], [penalty**0.5 * np.eye(INPUTS), np.zeros((INPUTS, ones.shape[1]))]])
    wanted = np.concatenate([y.numpy(), penalty**0.5 * weight.T.numpy()])
    found = np.linalg.lstsq(system, wanted, rcond=None)[0]
    return found[:INPUTS].T, found[INPUTS:].squeeze()


@pytest.mark.parametrize("ridge", [1e-4, 0.5])
def test_with_an_intercept_it_is_the_direct_solution(ridge: float) -> None:
    x, y = data()
    weight = drawn(5, OUTPUTS, INPUTS)
    found, bias = ridge_solution(Moments(INPUTS, OUTPUTS).add(x, y), weight, drawn(6, OUTPUTS), ridge)
    expected, expected_bias = direct(x, y, weight, ridge, intercept=True)
    assert bias is not None
    np.testing.assert_allclose(found, expected, atol=1e-9)  # normal equations square the condition, here below 1e6
    np.testing.assert_allclose(bias, expected_bias, atol=1e-9)  # the same


def test_without_an_intercept_it_is_the_direct_solution() -> None:
    x, y = data()
    weight = drawn(5, OUTPUTS, INPUTS)
    found, bias = ridge_solution(Moments(INPUTS, OUTPUTS).add(x, y), weight, None, 1e-3)
    assert bias is None
    expected, _ = direct(x, y, weight, 1e-3, intercept=False)
    np.testing.assert_allclose(found, expected, atol=1e-9)  # normal equations square the condition, here below 1e6


def test_without_noise_the_layer_itself_is_found() -> None:
    x, weight, bias = drawn(1, VECTORS, INPUTS), drawn(2, OUTPUTS, INPUTS), drawn(3, OUTPUTS)
    moments = Moments(INPUTS, OUTPUTS).add(x, x @ weight.T + bias)
    found, shift = ridge_solution(moments, torch.zeros(OUTPUTS, INPUTS), torch.zeros(OUTPUTS), 1e-12)
    torch.testing.assert_close(found, weight, atol=1e-10, rtol=0)  # the penalty moves weights by 1e-12
    torch.testing.assert_close(shift, bias, atol=1e-10, rtol=0)  # the same


def test_an_input_that_never_moves_leaves_the_weights_as_they_are() -> None:
    weight, y = drawn(1, OUTPUTS, INPUTS), drawn(2, VECTORS, OUTPUTS)
    moments = Moments(INPUTS, OUTPUTS).add(torch.zeros(VECTORS, INPUTS), y)
    found, bias = ridge_solution(moments, weight, torch.zeros(OUTPUTS), 1e-3)
    assert torch.equal(found, weight) and bias is not None
    torch.testing.assert_close(bias, y.mean(0))


def test_fewer_vectors_than_inputs_have_a_solution() -> None:
    x, y = drawn(1, 3, INPUTS), drawn(2, 3, OUTPUTS)
    found, bias = ridge_solution(Moments(INPUTS, OUTPUTS).add(x, y), drawn(3, OUTPUTS, INPUTS), drawn(4, OUTPUTS), 1e-3)
    assert bias is not None and bool(found.isfinite().all() and bias.isfinite().all())


@pytest.mark.parametrize("has_bias", [True, False])
def test_errors_are_those_of_the_vectors(has_bias: bool) -> None:
    x, y = data()
    weight, bias = drawn(5, OUTPUTS, INPUTS), drawn(6, OUTPUTS) if has_bias else None
    moments = Moments(INPUTS, OUTPUTS).add(x[:20].float().double(), y[:20]).add(x[20:].float(), y[20:])
    left = torch.nn.functional.linear(x.float().double(), weight, bias) - y
    torch.testing.assert_close(moments.squared_errors(weight, bias), left.square().sum(0))
    torch.testing.assert_close(moments.energies(), (y - y.mean(0)).square().sum(0))


def test_a_perfect_layer_has_no_negative_error() -> None:
    x, weight = drawn(1, VECTORS, INPUTS), drawn(2, OUTPUTS, INPUTS)
    errors = Moments(INPUTS, OUTPUTS).add(x, x @ weight.T).squared_errors(weight, None)
    assert bool((errors >= 0).all()) and float(errors.max()) < 1e-10
