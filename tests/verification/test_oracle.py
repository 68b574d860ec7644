"""The float64 oracle against computations written out in float64."""

import math

import pytest
import torch
from torch import Tensor, nn

from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.verification.evidence import collect_evidence
from flowopt.verification.inputs.cases import quick_cases
from flowopt.verification.running import run_case
from tests.zoo.models import randomise

# float64 sums of a few numbers in another order; a float32 leak leaves 1e-8.
TOLERANCE = 1e-12


def oracle_of(module: nn.Module, *inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The oracle's first output on the traced case, and that case's inputs in float64."""
    program = capture(module.eval(), inputs)
    case = quick_cases(program, seed=0)[0]
    outputs = run_case(program, case, raised=True)
    raised = [t.double() if t.is_floating_point() else t for t in case.inputs.values()]
    return next(iter(outputs.values())), raised


def assert_is(found: Tensor, wanted: Tensor) -> None:
    assert found.dtype is torch.float64
    scale = float(wanted.abs().max())
    assert float((found - wanted).abs().max()) <= TOLERANCE * scale


def test_a_models_own_casts_are_raised() -> None:
    class Casting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = x.to(torch.float16).to(torch.float32)
            return torch.softmax(self.linear(y), -1, dtype=torch.float32).to(x.dtype).float() * x.type(torch.float32)

    module = Casting()
    found, (x,) = oracle_of(module, torch.randn(3, 4))
    weight, bias = module.linear.weight.double(), module.linear.bias.double()
    with torch.no_grad():
        assert_is(found, torch.softmax(x @ weight.t() + bias, -1) * x)


def test_factories_with_and_without_a_dtype_are_raised() -> None:
    class Making(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            n = x.shape[1]
            steps = torch.arange(n, dtype=torch.float32) / 3
            thirds = torch.full((n,), 1 / 3)
            plain = torch.arange(0.0, 1.0, 0.1)[:n]
            more = (
                torch.linspace(0, 1, n) + torch.scalar_tensor(0.1) + torch.zeros(n) + torch.ones(n, dtype=torch.float16)
            )
            return x * steps + thirds + plain + more

    found, (x,) = oracle_of(Making(), torch.randn(3, 7))
    steps = torch.arange(7, dtype=torch.float64)
    more = torch.linspace(0, 1, 7, dtype=torch.float64) + 0.1 + 1
    assert_is(found, x * (steps / 3) + 1 / 3 + steps / 10 + more)


def test_integers_that_become_floats_become_float64() -> None:
    class Counting(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            share = mask.sum(1, keepdim=True) / mask.shape[1]
            return x * share + mask * 0.1 + torch.sqrt(mask.sum()) + mask.sum(1, keepdim=True) * (1 / 3)

    found, (x, mask) = oracle_of(Counting(), torch.randn(3, 7), torch.randint(0, 2, (3, 7)))
    count = mask.sum(1, keepdim=True).double()
    assert_is(found, x * (count / 7) + mask.double() * 0.1 + math.sqrt(int(mask.sum())) + count * (1 / 3))


def test_half_precision_weights_are_raised_as_they_are() -> None:
    module = nn.Linear(4, 5).half()
    found, (x,) = oracle_of(module, torch.randn(3, 4).half())
    with torch.no_grad():
        assert_is(found, x @ module.weight.double().t() + module.bias.double())


def test_a_norm_is_not_computed_in_float32_inside() -> None:
    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6))

        def forward(self, x: Tensor) -> Tensor:
            y = x.to(torch.float32)
            y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)
            return self.weight * y.to(x.dtype)

    module = Norm()
    found, (x,) = oracle_of(module, torch.randn(3, 6))
    with torch.no_grad():
        assert_is(found, module.weight.double() * x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6))


def test_complex_numbers_are_raised() -> None:
    class Spectrum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.rfft(x).abs()

    found, (x,) = oracle_of(Spectrum(), torch.randn(3, 8))
    assert_is(found, torch.fft.rfft(x).abs())


def test_the_default_dtype_comes_back() -> None:
    oracle_of(nn.Linear(4, 5), torch.randn(3, 4))
    assert torch.get_default_dtype() is torch.float32

    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, torch.arange(3.0)])

    program = capture(Failing().eval(), (torch.randn(4),))
    program.example["x"] = torch.randn(2, 2)
    with pytest.raises(RuntimeError):
        program.raised_copy().run_named({"x": torch.randn(2, 2)})
    assert torch.get_default_dtype() is torch.float32


def evidence_program() -> Program:
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    randomise(module, seed=1)
    return capture(module.eval(), (torch.zeros(5, 6),), dynamic={"input": {0: "batch"}}, dims={"batch": (1, 16)})


class TestEvidence:
    def test_own_error_is_that_of_the_original_and_its_ensemble(self) -> None:
        for case in collect_evidence(evidence_program()).cases:
            (output,) = case.outputs.values()
            assert output.own_error is not None and output.undecided is None
            alone = (output.original.double() - output.oracle).abs()
            finite = torch.isfinite(alone)
            assert bool((output.own_error >= torch.where(finite, alone, 0.0)).all())
            assert bool((output.own_error[~finite] == 0).all())

    def test_decisions_that_the_ensemble_makes_otherwise_are_undecided(self) -> None:
        class Closest(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.ones(3, 4))

            def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
                y = x @ self.weight.t()
                return y.argmax(-1), y.sum(-1) > 1e6

        evidence = collect_evidence(capture(Closest().eval(), (torch.zeros(64, 4),)))
        ties, clear = evidence.cases[0].outputs.values()
        assert ties.own_error is None and ties.undecided is not None and clear.undecided is not None
        assert bool(ties.undecided.any())  # three equal scores
        assert not bool(clear.undecided.any())

    def test_a_case_that_the_model_cannot_run_is_skipped_and_named(self) -> None:
        class Even(nn.Module):
            def forward(self, x: Tensor, pairs: Tensor) -> Tensor:
                return x[pairs]

        program = capture(Even().eval(), (torch.zeros(4, 3), torch.tensor([3, 0])), dynamic={"x": {0: "rows"}})
        evidence = collect_evidence(program)
        assert [c.case.name for c in evidence.cases] == ["traced"] or evidence.skipped
        assert all("the original does not run" in text for text in evidence.skipped)

    def test_models_that_draw_random_numbers_have_none(self) -> None:
        class Noisy(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x + torch.rand_like(x)

        evidence = collect_evidence(capture(Noisy().eval(), (torch.zeros(4),)))
        assert evidence.cases == ()
        assert "draws random numbers" in evidence.skipped[0]
