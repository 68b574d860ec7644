"""Times and sizes of a folded network: one time for the whole batch, and values of both, which are no rows."""

import pytest
import torch
from torch import Tensor, nn

from flowopt.program.capture import capture
from flowopt.sampling import Epilogue, fold
from flowopt.sampling.plain_loop import PlainLoop
from flowopt.sampling.roles import roles_of
from tests.sampling.networks import CHANNELS, SIZE, Timed, embedded, relative
from tests.sampling.samplers import euler
from tests.sampling.test_folding import FLOAT32, FLOAT64, expected, noise
from tests.zoo.randomise import randomise


class OneTime(Timed):
    """A time for the whole batch."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return super().forward(x, t.reshape(-1)[:1].expand(x.shape[0]))


@pytest.mark.parametrize(("shape", "steps"), [((), 3), ((1,), 600)])
def test_one_time_for_the_whole_batch(shape: tuple[int, ...], steps: int) -> None:
    module = OneTime()
    randomise(module, 5)
    example = (torch.zeros(2, CHANNELS, SIZE, SIZE), torch.full(shape, 0.5))
    program = capture(module.eval(), example, dynamic={"x": {0: "batch"}})
    folded, x = fold(program, euler(steps)), noise(3)
    plain = PlainLoop(program.raised_copy(), roles_of(program, 1), euler(steps), None, Epilogue())
    assert relative(folded.raised_copy().run_named({"noise": x.double()})["sample"], plain.run({"noise": x})) < FLOAT64


class Sized(Timed):
    """What depends on the time depends on the picture's shape too; and a weight is read through a transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.turned = nn.Parameter(torch.zeros(CHANNELS, 8))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        scale = embedded(t, 8) @ self.turned.t()
        return super().forward(x, t) * scale[:, :, None, None] + t[:, None, None, None] * (x.shape[2] / x.shape[3])


def test_a_value_of_the_time_and_of_two_sizes_is_no_table() -> None:
    module = Sized()
    randomise(module, 5)
    example = (torch.zeros(2, CHANNELS, SIZE, SIZE), torch.full((2,), 0.5))
    free = {"x": {0: "batch", 2: "height", 3: "width"}, "t": {0: "batch"}}
    folded = fold(capture(module.eval(), example, dynamic=free), euler(3))
    assert not any("turned" in name for name in folded.step.tensors)
    x = torch.randn(2, CHANNELS, 4, 7)
    found = folded.run(x)
    assert isinstance(found, Tensor)
    assert relative(found, expected(module, euler(3), x)) < FLOAT32


def test_a_value_of_the_time_that_a_size_limits_is_no_table() -> None:
    class Limited(Timed):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return super().forward(x, t) + t[:, None, None, None] * min(x.shape[2], 12)

    module = Limited()
    randomise(module, 5)
    example = (torch.zeros(2, CHANNELS, SIZE, SIZE), torch.full((2,), 0.5))
    folded = fold(
        capture(module.eval(), example, dynamic={"x": {0: "batch", 2: "height"}, "t": {0: "batch"}}), euler(3)
    )
    x = torch.randn(2, CHANNELS, 11, SIZE)
    found = folded.run(x)
    assert isinstance(found, Tensor)
    assert relative(found, expected(module, euler(3), x)) < FLOAT32


def test_weights_of_one_time_for_the_whole_batch_are_gone() -> None:
    module = OneTime()
    randomise(module, 5)
    program = capture(
        module.eval(), (torch.zeros(2, CHANNELS, SIZE, SIZE), torch.tensor(0.5)), dynamic={"x": {0: "batch"}}
    )
    assert not any("time" in name for name in fold(program, euler(3)).step.tensors)
