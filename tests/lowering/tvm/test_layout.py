"""What moves elements: slices, joins, padding, repeats, indexing, and tensors made of sizes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.lowering.tvm.compare import captured, require_equivalent, require_near, results

pytest.importorskip("tvm")

_X = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0))
_ROWS = torch.tensor([2, -1, 0])
_NAN = float("nan")


def _written(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    x = x.clone()
    x[:, rows, columns] = 5.0
    x[rows, :, columns] += 2.0
    return x


CASES: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "slices": (lambda x: [x[1:3], x[:, -3:], x[..., :-2], x[::2], x[:, 1:100:3], x[3:1]], (_X,)),
    "selects": (lambda x: [x[-1], x[:, 2], x.select(-1, -2)], (_X,)),
    "views": (
        lambda x: [x.reshape(2, -1), x.flatten(1), x.unsqueeze(-1), x[:1].squeeze(), x.unflatten(2, (3, 2))],
        (_X,),
    ),
    "permutations": (lambda x: [x.permute(2, 0, 1), x.transpose(0, -1), x[0].t(), x.movedim(0, 2)], (_X,)),
    "expand": (lambda x: [x[:1].expand(3, -1, -1), x[0, 0].expand(2, 4, 6)], (_X,)),
    "splits": (lambda x: [*x.split(2, 1), *x.split([1, 3], 0), *x.chunk(4, 2), *x.unbind(0)], (_X,)),
    "joins": (lambda x: [torch.cat([x, x[:1]]), torch.stack([x, x], -1), torch.cat([x.int(), x], 1)], (_X,)),
    "repeats": (lambda x: [x.repeat(2, 1, 3), x[0, :1].repeat(2, 3, 1), x.repeat_interleave(2, 1), x.tile(2)], (_X,)),
    "flat repeat": (lambda x: x.repeat_interleave(3), (_X[0],)),
    "rolls and flips": (lambda x: [x.roll((1, -2), (0, 2)), x.roll(7), x.flip(0, -1)], (_X,)),
    "triangles": (lambda x: [x.tril(), x.triu(1), x.tril(-2), (x > 0).triu()], (_X,)),
    "diagonal": (lambda x: [x.diagonal(), x.diagonal(1, 1, 2), x.diagonal(-2, 0, 2)], (_X,)),
    "constant padding": (
        lambda x: [F.pad(x, (1, 2)), F.pad(x, (0, 1, -1, 2), value=-3.0), F.pad(x > 0, (1, 1))],
        (_X,),
    ),
    "other padding": (
        lambda x: [F.pad(x, (2, 1), "reflect"), F.pad(x, (2, 3), "replicate"), F.pad(x, (3, 1), "circular")],
        (_X,),
    ),
    "pixels": (lambda x: [F.pixel_shuffle(x, 2), F.pixel_unshuffle(x, 2)], (torch.randn(2, 8, 4, 6),)),
    "ranges": (lambda x: x[0, 0] + torch.arange(6), (_X,)),
    "ranges by steps": (
        lambda x: [torch.arange(1, 12, 2) + x[0, 0], torch.arange(0, 1, 0.1)[:6] * x[0], torch.linspace(0, 1, 6) + x],
        (_X,),
    ),
    "fills": (
        lambda x: [torch.zeros_like(x), torch.full_like(x, -2), x.new_ones(2), torch.eye(3) + x[0, 0, :3]],
        (_X,),
    ),
    "one index": (lambda x, y: [x[y], x[:, y], x[..., y]], (_X, _ROWS)),
    "two indices": (lambda x, y: [x[y, y], x[:, y, y], x[y, :, y], x[y[:, None], y]], (_X, _ROWS)),
    "gather": (lambda x, y: [x.gather(1, y), x.gather(-1, y)], (_X, torch.randint(0, 5, (4, 3, 2)))),
    "index_select": (lambda x, y: x.index_select(1, y), (_X, _ROWS.abs())),
    "embedding": (lambda x, y: F.embedding(y, x[0], padding_idx=0), (_X, torch.tensor([[0, 4], [3, 1]]))),
    "writes at pairs": (
        lambda x, y: [x.index_put((y, y), x[0, 0]), x.index_put((y[:, None], y), x[0, :3, :1])],
        (_X, _ROWS),
    ),
    "writes in the middle": (lambda x, y: _written(x, y, y.abs() + 1), (_X, _ROWS)),
    "writes under a mask": (lambda x: x.masked_fill(x > 0, 2.0) + x.index_put((x > 1,), torch.tensor(-1.0)), (_X,)),
    "writes of rows": (lambda x, y: x.index_put((y,), x[:3] * 2), (_X, _ROWS)),
    "added rows": (lambda x, y: x.index_put((y,), x[:3], accumulate=True), (_X, torch.tensor([1, 1, -1]))),
    "scatter": (
        lambda x, y: [x.scatter(1, y, x), x.scatter(0, y[:1], 7.0), x.scatter_add(1, y, x)],
        (_X, torch.tensor([2, 0, 1, 3]).reshape(4, 1, 1)),
    ),
    "slices written": (lambda x: [x.slice_scatter(x[:, :2] * 0, 1, 1, 5, 2), x.select_scatter(x[0], 0, -1)], (_X,)),
    "one hot": (lambda x: F.one_hot(x, 5), (torch.tensor([0, 3, 4]),)),
    "sort": (lambda x: [*x.sort(-1), *x.sort(0, descending=True), x.argsort(1)], (_X,)),
    "sort of NaN": (
        lambda x: [*x.sort(-1), *x.sort(-1, descending=True), x.topk(2)[0], x.topk(2, largest=False)[0]],
        (torch.tensor([[_NAN, _NAN, _NAN, 1.0], [1.0, _NAN, 3.0, 2.0], [_NAN] * 4]),),
    ),
    "stable sort of ties": (lambda x: torch.sort(x, dim=-1, stable=True), (torch.tensor([[3, 1, 3, 1, 2]]),)),
    "topk": (lambda x: [*x.topk(3), *x.topk(2, 1, largest=False)], (_X,)),
    "cumulative sums": (lambda x: [x.cumsum(1), x.cumsum(-1), (x > 0).cumsum(0), x.int().cumsum(0)], (_X,)),
    "histogram": (lambda x: torch.histc(x, 4, -1, 1), (torch.tensor([-1.0, -0.6, 0.0, 0.2, 1.0, 1.5, -2.0]),)),
}

FREE: dict[str, Callable[[Tensor], Any]] = {
    "ends": lambda x: [x[:, 1:], x[:, :-1], x[:, -1], x[:, -1:], x[:, ::2]],
    "ranges": lambda x: [torch.arange(x.shape[1]) * x[..., 0], torch.arange(x.shape[1] * 2) + 1],
    "ends_of_another_axis": lambda x: [
        x[:, -x.shape[0] :],
        x[:, : -x.shape[0]],
        x[:, : x.shape[0]],
        x.select(1, -x.shape[0]),
        x.slice_scatter(x[:, -x.shape[0] :] * 2, 1, -x.shape[0]),
        x.select_scatter(x[:, 0], 1, -x.shape[0]),
    ],
    "made_of_sizes": lambda x: [torch.ones(x.shape[0], 2) * x.shape[1], x.new_full((x.shape[1],), 2), x / x.shape[1]],
    "numbers_of_sizes": lambda x: [x * x.shape[1] ** -0.5, x / (x.shape[0] * 1.5), x * (x.shape[1] / 3)],
    "bounds_of_sizes": lambda x: [x * torch.sym_max(x.shape[1], 5), x < x.shape[1] ** 0.5],
    "merged_axes": lambda x: x.transpose(0, 1).reshape(x.shape[1], -1) * 2,
    "doubled": lambda x: torch.cat([x, x], 1)[:, x.shape[1] :],
    "moved": lambda x: [F.pad(x, (0, 0, 1, 2)), x.roll(2, 1), x.flip(1), x.tril(), x.repeat(2, 1, 1)],
    "split": lambda x: x.split(2, 2),
    "reduced": lambda x: [x.mean(1), x.var(1), x.softmax(1), x.cumsum(1), x.argmax(1)],
    "sorted": lambda x: x.sort(1),
    "indexed_by_a_range": lambda x: x[torch.arange(x.shape[0]), -1],
}


@pytest.fixture(scope="module")
def outputs() -> dict[str, list[tuple[Tensor, ...]]]:
    return results(CASES)


@pytest.mark.parametrize("name", CASES)
def test_gives_what_torch_gives(name: str, outputs: dict[str, list[tuple[Tensor, ...]]]) -> None:
    for found, eager, exact in outputs[name]:
        require_near(found, eager, exact, name)


def test_free_sizes_are_those_of_the_call() -> None:
    x = torch.randn(2, 7, 3)

    def function(x: Tensor) -> Any:
        return {name: case(x) for name, case in FREE.items()}

    program = captured(function, x, free={"x": {0: "batch", 1: "length"}}, dims={"batch": (1, 4), "length": (4, 50)})
    require_equivalent(program, (x,), (torch.randn(3, 4, 3),), (torch.randn(1, 9, 3),))
