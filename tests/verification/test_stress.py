from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.verification.inputs.cases import quick_cases
from flowopt.verification.stress import STRESSED_CASES, stressed, stressed_tensors
from tests.program.models import Counter
from tests.zoo.models import randomise


class Stored(nn.Module):
    """Stored tensors of every kind."""

    order: Tensor
    mask: Tensor
    lowest: Tensor
    keep: Tensor
    unknown: Tensor
    empty: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.register_buffer("order", torch.tensor([3, 2, 1, 0]))
        self.register_buffer("mask", torch.tensor([[0.0, -1e4, float("-inf"), 0.0]]))
        self.register_buffer("lowest", torch.full((4,), torch.finfo(torch.float32).min))
        self.register_buffer("keep", torch.tensor([True, False, True, True]))
        self.register_buffer("unknown", torch.tensor([[float("nan"), 1.0, 1.0, 1.0]]))
        self.register_buffer("empty", torch.zeros(0, 4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)[..., self.order] * self.scale + self.mask
        y = torch.where(self.keep, y, self.lowest) + self.unknown
        return torch.cat([y, self.empty])


@pytest.fixture(scope="module")
def stored() -> Program:
    torch.manual_seed(0)
    return capture(Stored().eval(), (torch.randn(3, 4),))


class TestTensors:
    def test_matrices_are_multiplied_and_vectors_moved(self, stored: Program) -> None:
        found = stressed_tensors(stored, 30.0)
        assert torch.equal(found["linear.weight"], stored.tensors["linear.weight"] * 30.0)
        assert torch.equal(found["linear.bias"], stored.tensors["linear.bias"] + 50.0)

    def test_a_smaller_factor_moves_vectors_less(self, stored: Program) -> None:
        found = stressed_tensors(stored, 3.0)
        assert torch.equal(found["linear.weight"], stored.tensors["linear.weight"] * 3.0)
        assert torch.equal(found["linear.bias"], stored.tensors["linear.bias"] + 5.0)

    @pytest.mark.parametrize("name", ["scale", "order", "mask", "lowest", "keep", "unknown", "empty"])
    def test_numbers_integers_masks_and_constants_stay(self, stored: Program, name: str) -> None:
        (key,) = (k for k in stored.tensors if k.split(".")[-1] == name)
        assert stressed_tensors(stored, 30.0)[key] is stored.tensors[key]

    def test_state_stays(self) -> None:
        program = capture(Counter().eval(), (torch.ones(1, 3),))
        states = {i.state for i in program.inputs if i.state is not None}
        assert states
        found = stressed_tensors(program, 30.0)
        assert all(found[name] is program.tensors[name] for name in states)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
    def test_dtypes_stay(self, dtype: torch.dtype) -> None:
        program = capture(nn.Linear(4, 4).to(dtype).eval(), (torch.randn(3, 4, dtype=dtype),))
        assert {t.dtype for t in stressed_tensors(program, 30.0).values()} == {dtype}

    def test_the_program_itself_keeps_its_weights(self, stored: Program) -> None:
        before = {name: t.clone() for name, t in stored.tensors.items()}
        stressed(stored, quick_cases(stored, 0))
        assert all(torch.equal(t, before[name]) or name.endswith("unknown") for name, t in stored.tensors.items())


def layers(depth: int, last: Callable[[Tensor], Tensor] = torch.relu) -> Program:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(depth))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = last(layer(x))
            return x

    module = Deep()
    randomise(module, seed=0)
    return capture(module.eval(), (torch.randn(4, 8),))


def factor_of(program: Program) -> float | None:
    found = stressed(program, [c for c in quick_cases(program, 0) if c.name in STRESSED_CASES])
    return None if found is None else found[1]


class TestFactor:
    def test_is_thirty_where_outputs_stay_finite(self) -> None:
        assert factor_of(layers(3)) == 30.0

    def test_is_less_for_deep_models_without_norms(self) -> None:
        factor = factor_of(layers(40, lambda x: x))
        assert factor in (3.0, 1.5)

    def test_stays_thirty_where_norms_hold_the_numbers(self) -> None:
        assert factor_of(layers(40, lambda x: nn.functional.layer_norm(x, (8,)))) == 30.0

    def test_there_is_none_where_nothing_stays_finite(self) -> None:
        class Steep(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.height = nn.Parameter(torch.full((1, 8), 80.0))

            def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
                return torch.exp(self.height) * x, (x > 0).sum(-1)  # integers are always finite

        program = capture(Steep().eval(), (torch.randn(4, 8),))
        assert factor_of(program) is None

    def test_is_thirty_where_nothing_can_overflow(self) -> None:
        class Choosing(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.Linear(8, 8)

            def forward(self, x: Tensor) -> Tensor:
                return self.layer(x).argmax(-1)

        assert factor_of(capture(Choosing().eval(), (torch.randn(4, 8),))) == 30.0

    def test_the_copy_has_the_stressed_weights(self) -> None:
        program = layers(3)
        found = stressed(program, quick_cases(program, 0))
        assert found is not None
        copy, factor = found
        assert all(torch.equal(t, stressed_tensors(program, factor)[n]) for n, t in copy.tensors.items())
