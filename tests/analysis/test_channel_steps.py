"""Per-channel maps as scale and shift, and products that are none."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from flowopt.analysis.channel_steps import channel_step, composed, frozen_norm
from flowopt.program.capture import capture
from flowopt.program.program import Program
from tests.passes.programs import Written, canonical, normal, randomised

WIDTH = 3
X = normal(2, WIDTH, 4)


def program_of(forward: Callable[[Written, Tensor], Tensor]) -> Program:
    vectors = {name: nn.Parameter(torch.ones(WIDTH, 1)) for name in ("scale", "shift")}
    rows = nn.Parameter(torch.ones(4))
    module = randomised(Written(forward, **vectors, rows=rows, norm=nn.BatchNorm1d(WIDTH)))
    return canonical(capture(module.double(), (X.double(),)))


def last_value(program: Program) -> fx.Node:
    (value,) = program.graph.output_node().all_input_nodes
    return value


STEPS: dict[str, Callable[[Written, Tensor], Tensor]] = {
    "product": lambda m, x: m.scale * x,
    "quotient": lambda m, x: x / (1.0 + m.scale.abs()),
    "sum": lambda m, x: torch.add(x, m.shift, alpha=3),
    "sum of three times": lambda m, x: torch.add(m.shift, x, alpha=3),
    "difference": lambda m, x: torch.sub(x, m.shift, alpha=3),
    "difference from": lambda m, x: torch.sub(m.shift, x, alpha=3),
    "batch norm": lambda m, x: m.norm(x),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_its_scale_and_shift(name: str) -> None:
    program = program_of(STEPS[name])
    step = channel_step(last_value(program))
    assert step is not None and step.axis == 1
    scale, shift = composed([step, step], program.constant, WIDTH)
    x = X.double()
    y = x if scale is None else x * scale[:, None]
    y = y if shift is None else y + shift[:, None]
    wanted = program.run(program.run(x))
    torch.testing.assert_close(y, wanted, rtol=1e-12, atol=1e-12)  # a few float64 roundings of values near 10
    assert step.scales == (name not in ("sum", "difference"))


NO_STEPS: dict[str, Callable[[Written, Tensor], Tensor]] = {
    "along another axis": lambda m, x: x * m.rows,
    "along two axes": lambda m, x: x * (m.rows * m.scale),
    "of two computed values": lambda m, x: x * x.sum(-1, keepdim=True),
    "a vector over a value": lambda m, x: m.scale / x,
    "that broadcasts the value": lambda m, x: x[:, :1] * m.scale,
}


@pytest.mark.parametrize("name", NO_STEPS)
def test_other_products_are_no_steps_along_the_channels(name: str) -> None:
    assert channel_step(last_value(program_of(NO_STEPS[name])), 1) is None


@pytest.mark.parametrize(("shift", "count"), [("shift", 2), ("rows", 0)])
def test_a_frozen_norm_is_a_product_and_a_sum_along_one_axis(shift: str, count: int) -> None:
    program = program_of(lambda m, x: x * m.scale + getattr(m, shift))
    (product,) = program.graph.find_nodes(op="call_function", target=torch.ops.aten.mul.Tensor)
    assert len(frozen_norm(product)) == count
