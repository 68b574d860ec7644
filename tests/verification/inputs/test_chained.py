import torch
from torch import Tensor, nn

from flowopt.program.capture import capture
from flowopt.verification.inputs.battery import full_cases
from flowopt.verification.inputs.cases import quick_recipes
from flowopt.verification.inputs.chained import chained_plans


class Ring(nn.Module):
    """Keeps the last rows that it was called with."""

    memory: Tensor
    count: Tensor

    def __init__(self, places: int) -> None:
        super().__init__()
        self.register_buffer("memory", torch.zeros(places, 3))
        self.register_buffer("count", torch.zeros(1, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        here = (torch.arange(self.memory.shape[0]) == self.count % self.memory.shape[0]).unsqueeze(1)
        self.memory.copy_(torch.where(here, x, self.memory))
        self.count.add_(1)
        return self.memory.sum(0)


def test_the_state_is_what_as_many_calls_as_it_has_places_leave() -> None:
    for places, calls in ((12, 13), (5, 9), (40, 9)):
        program = capture(Ring(places).eval(), (torch.randn(1, 3),))
        (case,) = (case for case in full_cases(program, 0) if case.name == "chained")
        assert case.inputs["state_count"].tolist() == [calls]
        filled = case.inputs["state_memory"].any(1)
        assert int(filled.sum()) == min(calls, places)
        # Every call had its own input.
        assert len(case.inputs["state_memory"][filled].unique(dim=0)) == min(calls, places)


def test_the_model_keeps_its_own_state() -> None:
    module = Ring(5)
    program = capture(module.eval(), (torch.randn(1, 3),))
    stored = {name: tensor.clone() for name, tensor in program.tensors.items()}
    full_cases(program, 0)
    assert all(torch.equal(program.tensors[name], tensor) for name, tensor in stored.items())
    assert int(module.count) == 0


def test_a_call_that_fails_ends_the_chain() -> None:
    class Once(nn.Module):
        table: Tensor
        at: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.ones(4))
            self.register_buffer("at", torch.zeros(1, dtype=torch.int64))

        def forward(self, x: Tensor) -> Tensor:
            picked = self.table.index_select(0, self.at)
            self.at.add_(1)
            return x * picked

    program = capture(Once().eval(), (torch.randn(2),))
    (plan,) = chained_plans(program, quick_recipes(program)[0], 0)
    # The fifth call reads behind the table.
    assert plan.make().inputs["state_at"].tolist() == [4]


def test_without_state_there_is_none() -> None:
    program = capture(nn.Linear(3, 3).eval(), (torch.randn(2, 3),))
    assert not list(chained_plans(program, quick_recipes(program)[0], 0))
