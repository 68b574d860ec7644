import pytest
import torch
from torch import Tensor

from flowopt.errors import UserError
from flowopt.ops.ssm import S4D, Discretization, kernel_of
from tests.ops.ssm.random_s4d import random_s4d

EXACT = 1e-10
LENGTHS = (1, 2, 63)


def inputs(length: int, channels: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, channels, length, generator=generator, dtype=torch.float64)


def forms(layer: S4D, u: Tensor) -> dict[str, Tensor]:
    layer.precompute(u.shape[-1])
    made = {}
    for form in ("fft", "convolution", "recurrent"):
        layer.form = form
        made[form] = layer(u)
    return made


@pytest.mark.parametrize("discretization", ["zoh", "bilinear"])
@pytest.mark.parametrize("length", LENGTHS)
@torch.no_grad()
def test_transform_convolution_and_recurrence_agree(discretization: Discretization, length: int) -> None:
    made = forms(random_s4d(3, 8, discretization=discretization, seed=length), inputs(length))
    scale = made["fft"].abs().max()
    assert (made["convolution"] - made["fft"]).abs().max() <= EXACT * scale
    assert (made["recurrent"] - made["fft"]).abs().max() <= EXACT * scale


@torch.no_grad()
def test_dss_is_the_same_as_transform_and_convolution() -> None:
    layer = random_s4d(3, 8, discretization="dss")
    u = inputs(17)
    layer.precompute(17)
    transformed = layer(u)
    layer.form = "convolution"
    assert (layer(u) - transformed).abs().max() <= EXACT * transformed.abs().max()


@pytest.mark.parametrize("discretization", ["zoh", "bilinear"])
def test_a_shorter_kernel_is_the_beginning_of_a_longer_one(discretization: Discretization) -> None:
    system = random_s4d(3, 8, discretization=discretization).system()
    assert torch.equal(kernel_of(system, 40), kernel_of(system, 100)[:, :40])


def test_a_shorter_kernel_of_dss_is_another() -> None:
    layer = random_s4d(3, 8, discretization="dss")
    long, short = kernel_of(layer.system(100), 100), kernel_of(layer.system(10), 10)
    assert (long[:, :10] - short).abs().max() > 0.01 * short.abs().max()


def test_the_kernel_is_that_of_the_formula() -> None:
    layer = random_s4d(2, 4, seed=3)
    dt, a = layer.log_dt.detach().exp(), torch.complex(-layer.log_A_real.detach().exp(), layer.A_imag.detach())
    c = torch.view_as_complex(layer.C.detach())
    pairs = range(a.shape[1])
    last = sum(c[1, n] * ((dt[1] * a[1, n]).exp() - 1) / a[1, n] * (dt[1] * a[1, n] * 9).exp() for n in pairs)
    assert abs(kernel_of(layer.system(), 10)[1, 9] - 2 * last.real) < 1e-12


@torch.no_grad()
def test_steps_with_a_carried_state_continue_a_sequence() -> None:
    layer = random_s4d(3, 8, seed=1)
    u = inputs(20)
    state, outputs = layer.initial_state(u), []
    for at in range(20):
        y, state = layer.step(u[..., at], state)
        outputs.append(y)
    whole = layer(u)
    assert (torch.stack(outputs, -1) - whole).abs().max() <= EXACT * whole.abs().max()


def test_the_stored_kernel_is_rounded_once() -> None:
    layer = S4D(3, 8)
    layer.precompute(50)
    taps = kernel_of(layer.system(), 50)
    taps[:, 0] += layer.D.detach().double()
    assert layer.kernel is not None and torch.equal(layer.kernel, taps.float())


def test_a_kernel_that_is_too_short_is_told() -> None:
    layer = S4D(3, 8, form="convolution")
    layer.precompute(5)
    with pytest.raises(UserError, match="5 entries, and the input 6 steps"):
        layer(torch.zeros(1, 3, 6))


@torch.no_grad()
def test_dss_has_no_steps() -> None:
    layer = S4D(3, 8, discretization="dss", form="recurrent")
    with pytest.raises(UserError, match="depends on the length"):
        layer(torch.zeros(1, 3, 6))


def test_an_unknown_discretization_is_told() -> None:
    layer = S4D(3, 8, discretization="foh")  # type: ignore[arg-type]  # that is the test
    with pytest.raises(UserError, match="'foh' is no discretization"):
        layer.system()


@pytest.mark.parametrize(("channels", "states"), [(0, 4), (2, 3), (2, 0)])
def test_sizes_that_make_no_layer_are_told(channels: int, states: int) -> None:
    with pytest.raises(UserError, match="must be positive"):
        S4D(channels, states)
