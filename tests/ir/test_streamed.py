"""Large stored tensors are raised in parts: same numbers, and never a whole float64 copy."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from flowopt.ir import streamed
from flowopt.ir.evaluate import evaluate
from flowopt.program.capture import capture
from flowopt.program.program import Program

# A part of 64 bytes is sixteen numbers; every weight here is larger.
PART = 64
# Products of the same numbers, added up by kernels of other sizes.
TOLERANCE = 1e-15


class Applied(nn.Module):
    def __init__(self, body: Callable[..., Tensor], *shapes: tuple[int, ...]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.body = body
        self.stored = nn.ParameterList([nn.Parameter(torch.randn(s, generator=generator)) for s in shapes])

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x, *self.stored)


def embedded(x: Tensor, *table: Tensor) -> Tensor:
    return nn.functional.embedding(x.abs().long(), table[0], padding_idx=1)


BODIES: dict[str, tuple[Callable[..., Tensor], tuple[tuple[int, ...], ...]]] = {
    "linear": (nn.functional.linear, ((37, 5),)),
    "linear with a bias": (nn.functional.linear, ((37, 5), (37,))),
    "mm": (torch.mm, ((5, 37),)),
    "matmul": (torch.matmul, ((5, 37),)),
    "batched matmul": (torch.matmul, ((3, 5, 7),)),
    "matmul of one row": (lambda x, w: x[0] @ w, ((3, 5, 7),)),
    "bmm": (lambda x, w: torch.bmm(x.expand(3, -1, -1), w), ((3, 5, 7),)),
    "addmm": (lambda x, w, b: torch.addmm(b, x, w), ((5, 37), (37,))),
    "addmm with one bias": (lambda x, w, b: torch.addmm(b, x, w), ((5, 37), (1,))),
    "addmm of a transposed weight": (lambda x, w, b: torch.addmm(b, x, w.t()), ((37, 5), (37,))),
    "embedding": (embedded, ((37, 6),)),
}
WHOLE: dict[str, tuple[Callable[..., Tensor], tuple[tuple[int, ...], ...]]] = {
    "addmm with keywords": (lambda x, w, b: torch.addmm(b, x, w, beta=2.0, alpha=0.5), ((5, 37), (37,))),
    "both sides": (lambda x, w: w @ w, ((7, 7),)),
    "as x": (lambda x, w: w @ x.t(), ((37, 5),)),
    "a vector": (torch.matmul, ((5,),)),
    "linear of a vector": (nn.functional.linear, ((5,),)),
    "a transposed weight that is added too": (lambda x, w: x @ w.t() + w.t()[0], ((7, 5),)),
}


class Sizes(TorchDispatchMode):
    """The number of elements of every float64 tensor that an operator made."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dtype is torch.float64:
            self.made.append(result.numel())
        return result


def rows() -> Tensor:
    return torch.randn(4, 5, generator=torch.Generator().manual_seed(1))


def captured(body: Callable[..., Tensor], *shapes: tuple[int, ...]) -> Program:
    return capture(Applied(body, *shapes).eval(), (rows(),))


def raised(program: Program) -> Tensor:
    (found,) = evaluate(program.graph, program.tensors.__getitem__, {"x": rows().double()}, raised=True)
    assert isinstance(found, Tensor)
    return found


def both_ways(program: Program, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor, list[int]]:
    whole = raised(program)
    monkeypatch.setattr(streamed, "PART_BYTES", PART)
    with Sizes() as sizes:
        parts = raised(program)
    return whole, parts, sizes.made


@pytest.mark.parametrize("name", BODIES)
def test_a_weight_is_read_in_parts_and_the_numbers_stay(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    body, shapes = BODIES[name]
    whole, parts, made = both_ways(captured(body, *shapes), monkeypatch)
    assert parts.dtype is torch.float64 and parts.shape == whole.shape
    assert float((parts - whole).abs().max()) <= TOLERANCE * float(whole.abs().max())
    # Nothing as large as the weight is made but the result; a bias, x and the parts are smaller.
    weight = torch.Size(shapes[0]).numel()
    assert whole.numel() != weight and weight not in made


@pytest.mark.parametrize("name", WHOLE)
def test_other_readers_get_it_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    body, shapes = WHOLE[name]
    whole, parts, _ = both_ways(captured(body, *shapes), monkeypatch)
    assert parts.dtype is torch.float64 and torch.equal(parts, whole)


def test_it_is_the_same_as_float64_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    program = captured(nn.functional.linear, (37, 5), (37,))
    weight, bias = program.tensors["stored.0"].double(), program.tensors["stored.1"].double()
    _, parts, _ = both_ways(program, monkeypatch)
    wanted = rows().double() @ weight.t() + bias
    assert float((parts - wanted).abs().max()) <= TOLERANCE * float(wanted.abs().max())


def test_a_table_that_is_the_output_layer_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def tied(x: Tensor, table: Tensor) -> Tensor:
        found = nn.functional.embedding(x.abs().long(), table)
        return nn.functional.linear(found, table) + nn.functional.linear(x @ table[:5], table).unsqueeze(1)

    whole, parts, made = both_ways(captured(tied, (37, 6)), monkeypatch)
    assert float((parts - whole).abs().max()) <= TOLERANCE * float(whole.abs().max())
    # ``table[:5]`` has another reader's shape: it takes the table whole, once; the three others do not.
    assert made.count(37 * 6) == 1


def test_small_weights_and_wide_ones_are_read_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed, "PART_BYTES", 37 * 5 * 4)
    program = captured(nn.functional.linear, (37, 5))
    with Sizes() as sizes:
        raised(program)
    assert 37 * 5 in sizes.made


def test_the_program_itself_is_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed, "PART_BYTES", PART)
    program = captured(nn.functional.linear, (37, 5))
    (found,) = evaluate(program.graph, program.tensors.__getitem__, {"x": rows()})
    assert found.dtype is torch.float32


def test_what_a_caller_puts_in_the_weights_place_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed, "PART_BYTES", PART)
    program = captured(nn.functional.linear, (37, 5))
    (name,) = (n.name for n in program.graph.nodes if n.op == "get_attr")
    given = torch.full((37, 5), 2.0, dtype=torch.float64)
    (found,) = evaluate(
        program.graph, program.tensors.__getitem__, {"x": rows().double()}, raised=True, override={name: given}
    )
    assert torch.equal(found, rows().double() @ given.t())
