"""State: what a model changes of its own becomes an explicit input and output."""

from typing import Any

import torch
from torch import Tensor, nn

from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.workflows.pipelines import Pipeline
from tests.program.models import Counter, DriftingNorm
from tests.zoo.models import randomise


def values(program: Program, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
    """Outputs by name, also of a program with one bare output."""
    return program.run_named(program.bind(args, kwargs))


def test_a_mutated_buffer_is_an_input_with_a_default_and_an_output() -> None:
    program = capture(Counter().eval(), (torch.ones(1, 3),))
    assert [(i.name, i.state) for i in program.inputs] == [
        ("state_calls", "calls"),
        ("state_cache", "cache"),
        ("x", None),
    ]
    assert [(o.name, o.state) for o in program.outputs] == [
        ("output", None),
        ("state_calls.next", "calls"),
        ("state_cache.next", "cache"),
    ]
    assert torch.equal(program.tensors["cache"], torch.full((4, 3), 0.5))


def test_capture_does_not_run_the_mutation() -> None:
    module = Counter().eval()
    capture(module, (torch.ones(1, 3),))
    assert int(module.calls) == 0
    assert torch.equal(module.cache, torch.full((4, 3), 0.5))


def test_three_steps_agree_with_the_module() -> None:
    module = Counter().eval()
    program = Pipeline("exact").run(capture(module, (torch.ones(1, 3),))).program
    state: dict[str, Tensor] = {}
    for step in range(3):
        x = torch.full((1, 3), float(step + 1))
        found = values(program, x, **state)
        torch.testing.assert_close(found["output"], module(x), rtol=0, atol=0)
        state = {name: found[f"{name}.next"] for name in ("state_calls", "state_cache")}
    assert torch.equal(state["state_cache"], module.cache)


def test_the_stored_default_stays_after_a_run() -> None:
    program = capture(Counter().eval(), (torch.ones(1, 3),))
    for _ in range(2):
        assert int(values(program, torch.ones(1, 3))["state_calls.next"]) == 1


def test_state_is_never_folded() -> None:
    module = DriftingNorm()
    randomise(module, seed=0)
    x = torch.randn(2, 2, 4, 4)
    run = Pipeline("exact").run(capture(module.eval(), (x,)))
    record = next(r for r in run.records if r.name == "fold-batch-norm")
    assert record.refusal_counts == {"not-constant": 1}
    state: dict[str, Tensor] = {}
    for _ in range(2):
        found = values(run.program, x, **state)
        torch.testing.assert_close(found["output"], module(x), rtol=0, atol=0)
        state = {"state_norm_running_mean": found["state_norm_running_mean.next"]}


def test_names_of_state_leave_the_names_of_inputs_alone() -> None:
    class Clash(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.total: Tensor
            self.register_buffer("total", torch.zeros(3))

        def forward(self, state_total: Tensor) -> Tensor:
            self.total.add_(state_total)
            return self.total * 2

    program = capture(Clash().eval(), (torch.ones(3),))
    assert [i.name for i in program.inputs] == ["state_total_", "state_total"]
    assert [o.name for o in program.outputs] == ["output", "state_total_.next"]
    torch.testing.assert_close(values(program, torch.ones(3))["output"], torch.full((3,), 2.0), rtol=0, atol=0)


def test_two_buffers_with_one_spelling_stay_apart() -> None:
    class Alike(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Module()
            self.a_b: Tensor
            self.a.register_buffer("b", torch.zeros(3))
            self.register_buffer("a_b", torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            inner = self.a.get_buffer("b")
            inner.add_(x)
            self.a_b.mul_(2.0)
            return inner + self.a_b

    program = capture(Alike().eval(), (torch.ones(3),))
    names = [o.name for o in program.outputs]
    assert len(set(names)) == 3
    found = values(program, torch.ones(3))
    by_state = {o.state: found[o.name] for o in program.outputs}
    assert torch.equal(by_state["a.b"], torch.ones(3))
    assert torch.equal(by_state["a_b"], torch.full((3,), 2.0))


def test_a_mutated_input_gains_an_output() -> None:
    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x.add_(1.0)
            return x * 2

    program = capture(InPlace().eval(), (torch.zeros(2),))
    assert [(o.name, o.state) for o in program.outputs] == [("output", None), ("x.next", "x")]
    x = torch.zeros(2)
    found = values(program, x)
    assert torch.equal(found["x.next"], torch.ones(2))
    assert torch.equal(x, torch.zeros(2))
