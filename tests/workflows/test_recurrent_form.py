from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flowopt
from flowopt.errors import UserError
from flowopt.program.program import Program
from flowopt.workflows.recurrent_form import recurrent_form
from tests.passes.fold.state_spaces import CHANNELS, inputs, layer
from tests.passes.programs import Written


def captured(model: nn.Module, u: Tensor, axis: int = 2) -> Program:
    name = "u" if not isinstance(model, (Written, nn.Sequential)) else "x" if isinstance(model, Written) else "input"
    free = {name: {0: "batch", axis: "length"}}
    return flowopt.capture(model.eval(), (u,), dynamic=free, dims={"length": (2, 50)})


def blocks() -> nn.Module:
    pointwise = (nn.Conv1d(CHANNELS, 2 * CHANNELS, 1), nn.GLU(dim=-2))
    return nn.Sequential(layer(seed=1), nn.GELU(), *pointwise, layer(seed=2))


def channels_last() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        y: Tensor = x + m.fc(m.ssm(m.norm(x).transpose(1, 2)).transpose(1, 2))
        return y

    return Written(forward, norm=nn.LayerNorm(CHANNELS), ssm=layer(seed=3), fc=nn.Linear(CHANNELS, CHANNELS))


@pytest.mark.parametrize(("make", "axis"), [(blocks, 2), (channels_last, 1)])
def test_steps_give_what_the_whole_sequence_gives(make: Callable[[], nn.Module], axis: int) -> None:
    u = inputs(20, batch=3) if axis == 2 else inputs(20, batch=3).mT.contiguous()
    program = captured(make(), u[:2], axis)
    form = recurrent_form(program, "length")
    states = [torch.zeros(3, *shape) for shape in form.shapes]
    own, outputs = len(program.outputs), []
    for at in range(20):
        made = form.program.run(*[u.narrow(axis, at, 1)], *states)
        assert isinstance(made, dict)
        values = list(made.values())
        outputs.append(values[0])
        states = values[own:]
    whole = program.run(u)
    assert isinstance(whole, Tensor)
    torch.testing.assert_close(torch.cat(outputs, axis), whole, atol=1e-5, rtol=1e-5)  # sums in another order, float32


@pytest.mark.parametrize(
    ("name", "forward"),
    [
        ("sum", lambda m, x: m.ssm(x) + x.sum(-1, keepdim=True)),
        ("shift", lambda m, x: m.ssm(x) + x.roll(1, -1)),
        ("wide-convolution", lambda m, x: m.ssm(m.wide(x))),
        ("position", lambda m, x: m.ssm(x + torch.arange(x.shape[-1]))),
        ("count", lambda m, x: m.ssm(x) * x.shape[-1]),
    ],
)
def test_refuses_a_model_that_looks_at_other_tokens(name: str, forward: Callable[..., Tensor]) -> None:
    model = Written(forward, ssm=layer(), wide=nn.Conv1d(CHANNELS, CHANNELS, 3, padding=1))
    with pytest.raises(UserError, match="more than one token|where a token stands|number of tokens"):
        recurrent_form(captured(model, inputs(20)), "length")


def test_refuses_a_layer_without_steps() -> None:
    program = captured(layer(discretization="dss"), inputs(20))
    with pytest.raises(UserError, match="dynamic-shape"):
        recurrent_form(program, "length")


def test_refuses_a_model_without_state_space_layers() -> None:
    with pytest.raises(UserError, match="no state space layer"):
        recurrent_form(captured(Written(lambda m, x: x.sin()), inputs(20)), "length")


def test_refuses_a_dimension_that_is_not_there() -> None:
    with pytest.raises(UserError, match="no free dimension 'tokens'"):
        recurrent_form(captured(layer(), inputs(20)), "tokens")
