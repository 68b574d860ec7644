"""Probing leaves everything else as it is: the scheduler, random numbers, and torch."""

import copy
import subprocess
import sys
from collections.abc import Mapping

import diffusers
import numpy
import pytest
import torch

from flowopt.errors import UserError
from flowopt.sampling import probe_scheduler
from tests.sampling.schedulers import CASES, probed

# The libraries' arrays of tensors warn under newer NumPy.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The `scale_model_input`")


def equal(left: object, right: object) -> bool:
    """Of the same type with the same content, to the bit."""
    if type(left) is not type(right):
        return False
    if isinstance(left, torch.Tensor):
        assert isinstance(right, torch.Tensor)
        same = (left == right) | ((left != left) & (right != right))  # KDPM2 interpolates past its last time, to NaN
        return left.dtype == right.dtype and left.shape == right.shape and bool(same.all())
    if isinstance(left, numpy.ndarray):
        return numpy.array_equal(left, right)  # type: ignore[arg-type]  # of the same type
    if isinstance(left, Mapping):
        assert isinstance(right, Mapping)
        return list(left) == list(right) and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        assert isinstance(right, (list, tuple))
        return len(left) == len(right) and all(map(equal, left, right))
    return left is right or left == right


def stepped(name: str) -> object:
    """A scheduler in the middle of a schedule."""
    scheduler, x = CASES[name].make(), torch.ones(1, 3, 4, 4)
    scheduler.set_timesteps(6, **{key: value for key, value in CASES[name].options.items() if key == "mu"})
    for time in scheduler.timesteps[:3]:
        x = scheduler.step(torch.tanh(x), time, x, return_dict=False)[0]
    return scheduler


@pytest.mark.parametrize("name", CASES)
def test_the_scheduler_is_unchanged(name: str) -> None:
    scheduler = CASES[name].make()
    before = copy.deepcopy(vars(scheduler))
    options: dict = dict(CASES[name].options)
    probe_scheduler(scheduler, 4, **options)
    assert equal(vars(scheduler), before)


@pytest.mark.parametrize("name", ["euler", "heun", "unipc-2", "pndm", "lms", "dpm++-3m", "sa", "ipndm", "kdpm2"])
def test_a_scheduler_that_has_stepped_begins_anew_and_stays_where_it_is(name: str) -> None:
    scheduler = stepped(name)
    before = copy.deepcopy(vars(scheduler))
    spec = probe_scheduler(scheduler, 4)
    assert equal(vars(scheduler), before)
    numpy.testing.assert_array_equal(spec.table, probed(CASES[name], 4).table)


def test_no_generator_of_random_numbers_moves() -> None:
    torch.manual_seed(3)
    numpy.random.seed(3)
    torch_before, numpy_before = torch.get_rng_state(), numpy.random.get_state()
    probed(CASES["euler-ancestral"], 4)
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert equal(numpy.random.get_state(), numpy_before)


class Failing:
    """Draws, and fails."""

    timesteps = torch.tensor([3, 2, 1])

    def set_timesteps(self, steps: int) -> None:
        self.timesteps = torch.arange(steps)

    def step(self, output: torch.Tensor, time: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        torch.randn(sample.shape)
        raise ValueError("a wheel fell off")


def test_noise_is_noise_again_after_an_error() -> None:
    functions = (torch.randn, torch.randn_like, torch.Tensor.to)
    torch.manual_seed(3)
    expected = torch.randn(4, 1, 1, 1)
    torch.manual_seed(3)
    with pytest.raises(UserError, match="a wheel fell off"):
        probe_scheduler(Failing(), 3)
    assert torch.equal(torch.randn(4, 1, 1, 1), expected)
    assert torch.ones(1, 1, 1, 1, dtype=torch.float64).to(torch.float32).dtype == torch.float32
    assert (torch.randn, torch.randn_like, torch.Tensor.to) == functions


def test_an_error_leaves_the_scheduler_unchanged() -> None:
    scheduler = diffusers.DDIMScheduler()
    before = copy.deepcopy(vars(scheduler))
    with pytest.raises(UserError):
        probe_scheduler(scheduler, 4)
    assert equal(vars(scheduler), before)


def test_a_default_dtype_and_gradients_do_not_matter() -> None:
    scheduler = diffusers.EulerDiscreteScheduler()
    expected = probe_scheduler(scheduler, 4).table
    scheduler.betas.requires_grad_()
    torch.set_default_dtype(torch.float64)
    try:
        numpy.testing.assert_array_equal(probe_scheduler(scheduler, 4).table, expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_scheduler_of_somebody_else_is_probed_without_diffusers() -> None:
    program = """
import sys, torch
from flowopt.sampling import probe_scheduler

class Euler:
    def set_timesteps(self, steps):
        self.timesteps = torch.arange(steps, 0, -1) / steps
    def step(self, velocity, time, sample):
        return sample - velocity / len(self.timesteps)

print(probe_scheduler(Euler(), 2).table.tolist(), "diffusers" in sys.modules)
"""
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[[1.0, 0.0, 0.0], [1.0, -0.5, 0.0], [1.0, -0.5, -0.5]] False"
