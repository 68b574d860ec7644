"""Counts against torch's own counter where it counts, and against the definition elsewhere."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from flowopt.analysis.concrete_shapes import ConcreteShapes
from flowopt.analysis.flops import flops, node_flops
from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.verification.inputs.cases import case_of
from flowopt.verification.inputs.regimes import normal
from tests.zoo.models import ZOO

aten = torch.ops.aten


class Applied(nn.Module):
    """A function of its inputs as a module."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


def captured(function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> Program:
    return capture(Applied(function).eval(), tuple(torch.zeros(shape) for shape in shapes))


@cache
def zoo(name: str) -> Program:
    model = ZOO[name]()
    return capture(model.module, (), model.kwargs, dynamic=model.dynamic, dims=model.dims)


def counted_by_torch(program: Program, sizes: dict[str, int]) -> int:
    # The math kernel: FlopCounterMode does not know the fused attention of CPUs.
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        program.run_named(case_of(program, "counted", sizes, normal, seed=0).inputs)
    return int(counter.get_total_flops())


def products(program: Program, sizes: dict[str, int]) -> int:
    """The part of operators that torch counts: those that count more than their output elements."""
    shapes = ConcreteShapes(program, sizes)
    names = ("linear", "addmm", "matmul", "bmm", "mm", "conv1d", "conv2d", "scaled_dot_product_attention")
    nodes = [n for n in program.graph.nodes if getattr(getattr(n.target, "_schema", None), "name", "")[6:] in names]
    return sum(node_flops(node, shapes) or 0 for node in nodes)


def test_products_agree_with_torch() -> None:
    assert_agrees("digits-vit")


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_products_of_every_zoo_model_agree_with_torch(name: str) -> None:
    assert_agrees(name)


def assert_agrees(name: str) -> None:
    program = zoo(name)
    sizes = {dim.name: size for dim, size in zip(program.dims, (3, 11), strict=False)}
    found = products(program, sizes)
    assert found > 0
    assert found == counted_by_torch(program, sizes)
    assert found < (flops(program, sizes) or 0) < 2 * found


PRODUCTS: dict[str, tuple[Callable[..., Tensor], tuple[tuple[int, ...], ...], int]] = {
    "linear": (functional.linear, ((2, 3, 4), (5, 4)), 2 * 2 * 3 * 4 * 5),
    "a matrix and a matrix": (torch.mm, ((2, 3), (3, 4)), 2 * 2 * 3 * 4),
    "a sum and matrices": (torch.addmm, ((4,), (2, 3), (3, 4)), 2 * 2 * 3 * 4),
    "batches": (torch.bmm, ((5, 2, 3), (5, 3, 4)), 5 * 2 * 2 * 3 * 4),
    "a sum and batches": (torch.baddbmm, ((5, 2, 4), (5, 2, 3), (5, 3, 4)), 5 * 2 * 2 * 3 * 4),
    "matmul that broadcasts": (torch.matmul, ((6, 1, 2, 3), (5, 3, 4)), 6 * 5 * 2 * 2 * 3 * 4),
    "a matrix and a vector": (torch.matmul, ((2, 3), (3,)), 2 * 2 * 3),
    "grouped convolution": (
        lambda x, w: functional.conv2d(x, w, stride=2, padding=1, groups=2),
        ((2, 4, 9, 9), (6, 2, 3, 3)),
        2 * (2 * 6 * 5 * 5) * (2 * 3 * 3),
    ),
    "padding by name": (
        lambda x, w: functional.conv1d(x, w, padding="same"),
        ((2, 4, 9), (6, 4, 3)),
        2 * (2 * 6 * 9) * (4 * 3),
    ),
    "three axes": (functional.conv3d, ((1, 2, 4, 4, 4), (3, 2, 2, 2, 2)), 2 * (3 * 3**3) * (2 * 2**3)),
    "transposed convolution": (
        lambda x, w: functional.conv_transpose2d(x, w, stride=2),
        ((2, 4, 5, 5), (4, 6, 3, 3)),
        2 * (2 * 4 * 5 * 5) * (6 * 3 * 3),
    ),
    "attention": (
        functional.scaled_dot_product_attention,
        ((2, 3, 7, 4), (2, 3, 5, 4), (2, 3, 5, 6)),
        2 * (2 * 3 * 7) * 5 * (4 + 6),
    ),
    "einsum": (lambda x, y: torch.einsum("bik,bkj->bij", x, y), ((5, 2, 3), (5, 3, 4)), 5 * 2 * 2 * 3 * 4),
    "einsum with an ellipsis": (lambda x, y: torch.einsum("...k,jk", x, y), ((5, 2, 3), (4, 3)), 5 * 2 * 2 * 3 * 4),
    "a trace by einsum": (lambda x: torch.einsum("ii->", x), ((4, 4),), 4),
    "elements": (torch.tanh, ((4, 4),), 16),
    "views are free": (lambda x: x.transpose(0, 1)[1].unsqueeze(0), ((4, 4),), 0),
}


@pytest.mark.parametrize("how", PRODUCTS)
def test_counts_by_definition(how: str) -> None:
    function, shapes, wanted = PRODUCTS[how]
    assert flops(captured(function, *shapes), {}) == wanted


def test_a_recurrent_layer_multiplies_with_all_matrices_at_every_step() -> None:
    program = capture(nn.GRU(4, 5, batch_first=True).eval(), (torch.zeros(2, 7, 4),))
    matrices = 3 * 5 * 4 + 3 * 5 * 5
    found = flops(program, {})
    # The initial state of zeros counts its 10 elements.
    assert found == 2 * 2 * 7 * matrices + 10


def test_the_sizes_of_free_dimensions_count() -> None:
    program = capture(nn.Linear(3, 4).eval(), (torch.zeros(2, 3),), dynamic={"input": {0: "batch"}})
    assert [flops(program, {"batch": size}) for size in (1, 10**9)] == [24, 24 * 10**9]


def test_sizes_that_depend_on_data_count_as_nothing() -> None:
    program = captured(lambda x: torch.tanh(x[x > 0]).sum() + x.sum(), (5,))
    known = flops(program, {})
    # x > 0, two sums and their sum.
    assert known is not None and 8 <= known <= 10


def test_none_where_every_size_depends_on_data() -> None:
    assert flops(captured(lambda x: torch.nonzero(x), (5,)), {}) is None


def test_a_program_without_operators_needs_none() -> None:
    identity: Any = Applied(lambda x: x)
    assert flops(capture(identity.eval(), (torch.zeros(3),)), {}) == 0
