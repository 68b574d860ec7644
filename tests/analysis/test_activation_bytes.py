"""The estimate against hand-counted graphs, and against what really lives while zoo models are evaluated."""

import weakref
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from flowopt.analysis.activation_bytes import activation_bytes
from flowopt.ir.evaluate import Value, evaluate
from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.verification.inputs.cases import case_of
from flowopt.verification.inputs.regimes import normal
from tests.zoo.models import ZOO


class Applied(nn.Module):
    """A function of its inputs as a module."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


def peak(function: Callable[..., Tensor], *inputs: Tensor, raised: bool = False) -> int:
    return activation_bytes(capture(Applied(function).eval(), inputs), {}, raised=raised)


X = torch.zeros(10, 100)
BYTES = 4000


def test_values_go_after_their_last_reader() -> None:
    assert peak(lambda x: x.sin().cos().tan().exp(), X) == 3 * BYTES  # the input, one value and the next


def test_values_that_are_read_later_stay() -> None:
    def branches(x: Tensor) -> Tensor:
        y, z = x.sin(), x.cos()
        return z.tan().exp() + y

    assert peak(branches, X) == 4 * BYTES


def test_a_value_that_nobody_reads_goes_at_once() -> None:
    assert peak(lambda x: torch.std_mean(x, 1)[1] + 1, X) == BYTES + 3 * 40


def test_views_take_nothing_and_keep_what_they_show() -> None:
    assert peak(lambda x: x.sin().view(100, 10).transpose(0, 1)[2:4], X) == 2 * BYTES
    assert peak(lambda x: x.sin().split(5)[0].exp(), X) == 2 * BYTES + BYTES // 2


def test_a_reshape_that_copies_counts_once() -> None:
    assert peak(lambda x: x.t().reshape(10, 100), X) == 2 * BYTES


def test_raised_values_have_eight_bytes_and_integers_their_own() -> None:
    assert peak(lambda x, i: x.sin() + i, X, torch.zeros(10, 100, dtype=torch.int32), raised=True) == 7 * BYTES
    assert peak(lambda x: x.sin(), X.half(), raised=True) == 4 * BYTES


def test_stored_tensors_count_while_they_are_read_raised() -> None:
    program = capture(nn.Linear(100, 50, bias=False).eval(), (X,))
    assert activation_bytes(program, {}) == BYTES + 2000
    assert activation_bytes(program, {}, raised=True) == 2 * (BYTES + 2000) + 8 * 100 * 50


def test_attention_counts_its_scores_where_no_fused_kernel_takes_it() -> None:
    def scores(width: int, rank: int) -> int:
        q, v = torch.zeros(1, 1, 64, 8), torch.zeros(1, 1, 64, width)
        inputs = (q, q + 1, v) if rank == 4 else (q[0], q[0] + 1, v[0])
        return peak(functional.scaled_dot_product_attention, *inputs) - sum(t.nbytes for t in inputs) - v.nbytes

    assert scores(8, 4) == 0
    assert scores(9, 4) == scores(8, 3) == 2 * 64 * 64 * 4


def test_sizes_that_depend_on_data_count_as_nothing() -> None:
    assert peak(lambda x: x[x > 0].exp(), X) == BYTES + 1000


def test_the_sizes_of_free_dimensions_count() -> None:
    program = capture(nn.Tanh().eval(), (torch.zeros(2, 3),), dynamic={"input": {0: "batch"}})
    assert activation_bytes(program, {"batch": 10**9}) == 10**9 * 3 * 4 * 2


@cache
def zoo(name: str) -> Program:
    model = ZOO[name]()
    return capture(model.module, (), model.kwargs, dynamic=model.dynamic, dims=model.dims)


def measured(program: Program, inputs: dict[str, Tensor]) -> int:
    """The most bytes of distinct storages among the values that live after any node."""
    living: list[weakref.ref[Tensor]] = []
    most = 0

    def observe(node: fx.Node, value: Value) -> None:
        nonlocal living, most
        living += [weakref.ref(v) for v in (value if isinstance(value, tuple) else (value,)) if isinstance(v, Tensor)]
        living = [one for one in living if one() is not None]
        alive = [tensor.untyped_storage() for one in living if (tensor := one()) is not None]
        most = max(most, sum({storage.data_ptr(): storage.nbytes() for storage in alive}.values()))

    evaluate(program.graph, program.read, inputs, observe=observe)
    return most


def assert_close(name: str) -> None:
    program = zoo(name)
    sizes = {dim.name: size for dim, size in zip(program.dims, (8, 64), strict=False)}
    found = measured(program, case_of(program, "measured", sizes, normal, seed=0).inputs)
    assert found <= activation_bytes(program, sizes) <= 1.05 * found


def test_the_estimate_is_what_lives() -> None:
    assert_close("digits-vit")


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_the_estimate_is_what_lives_in_every_zoo_model(name: str) -> None:
    assert_close(name)
