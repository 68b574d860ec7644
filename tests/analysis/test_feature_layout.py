"""Features are where the layout says: the moves are run on the features' own numbers, and compared."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from flowopt.analysis.feature_layout import Layout, initial_layout, placed_readers
from flowopt.program.capture import capture
from flowopt.program.program import Program
from tests.passes.programs import Written

WIDTH = 12
# Of (2, 5, 12), features last.
MOVES: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda y: y,
    "heads": lambda y: y.view(2, 5, 4, 3).transpose(1, 2),
    "merged": lambda y: y.view(2, 5, 4, 3).transpose(1, 2).transpose(1, 2).reshape(2, 5, 12),
    "features-of-all-heads": lambda y: y.view(2, 5, 4, 3).transpose(2, 3).reshape(2, 5, 12),
    "stacked": lambda y: y.view(2, 5, 4, 3).permute(0, 2, 1, 3).reshape(8, 5, 3),
    "unbind": lambda y: y.view(2, 5, 3, 2, 2).permute(2, 0, 3, 1, 4).unbind(0)[1],
    "chunk-of-heads": lambda y: y.view(2, 5, 2, 6).chunk(3, -1)[2],
    "split": lambda y: y.split([2, 4, 6], -1)[1],
    "select": lambda y: y.view(2, 5, 3, 4).select(2, -1),
    "slice": lambda y: y[..., -7:-2],
    "rows": lambda y: y[:, 1::2],
    "repeated": lambda y: y.view(2, 5, 4, 3).repeat_interleave(3, 2).reshape(2, 5, 36),
    "grouped": lambda y: y.view(2, 5, 2, 1, 6).expand(-1, -1, -1, 4, -1).reshape(2, 5, 48),
    "squeezed": lambda y: y[:, :1].squeeze(1).unsqueeze(-1),
    "whole-heads-of-merged": lambda y: y.view(2, 5, 4, 3).transpose(2, 3).reshape(2, 5, 12)[..., 4:8],
    "beside-tokens": lambda y: y.mT.reshape(2, 4, 15),
    "cast": lambda y: y.double().contiguous(),
}


def followed(move: Callable[[Tensor], Tensor], **free: object) -> tuple[Program, fx.Node, Layout]:
    """A program that moves the output of a linear layer, the last node of the moves, and its layout."""
    module = Written(lambda m, x: torch.sin(move(m.fc(x))), fc=nn.Linear(7, WIDTH)).eval()
    program = capture(module, (torch.randn(2, 5, 7),), **free)  # type: ignore[arg-type]  # dynamic=
    layer = next(n for n in program.graph.nodes if n.target is torch.ops.aten.linear.default)
    layout = initial_layout(layer, 2)
    assert layout is not None
    (reader,) = placed_readers(layer, layout)
    assert reader.node.target is torch.ops.aten.sin.default, f"the layout is lost at {reader.node}"
    return program, reader.source, reader.layout


@pytest.mark.parametrize("name", MOVES)
def test_features_are_where_the_layout_says(name: str) -> None:
    _, _, layout = followed(MOVES[name])
    moved = MOVES[name](torch.arange(float(WIDTH)).expand(2, 5, WIDTH))
    found = torch.tensor(layout.features(*range(moved.dim())), dtype=moved.dtype).reshape(moved.shape)
    assert torch.equal(found, moved)
    assert layout.all_features() == frozenset(moved.flatten().long().tolist())
    differ = tuple(a for a in range(moved.dim()) if not torch.equal(moved.narrow(a, 0, 1).expand_as(moved), moved))
    assert layout.featured_axes() == differ


def test_free_sizes_beside_the_features_are_followed() -> None:
    def move(y: Tensor) -> Tensor:
        return y.unflatten(-1, (4, 3)).transpose(1, 2).flatten(0, 1)

    _, _, layout = followed(move, dynamic={"x": {0: "batch", 1: "tokens"}})
    assert layout.featured_axes() == (0, 2)
    assert layout.all_features() == frozenset(range(WIDTH))


@pytest.mark.parametrize(
    "move",
    [
        lambda y: y[..., ::2],
        lambda y: y.flip(-1),
        lambda y: y.view(2, 5, 3, 4).transpose(2, 3).reshape(2, 5, 6, 2),
    ],
    ids=["steps", "flip", "cut-across"],
)
def test_what_is_no_move_or_cannot_be_followed_reads_all(move: Callable[[Tensor], Tensor]) -> None:
    module = Written(lambda m, x: torch.sin(move(m.fc(x))), fc=nn.Linear(7, WIDTH)).eval()
    program = capture(module, (torch.randn(2, 5, 7),))
    layer = next(n for n in program.graph.nodes if n.target is torch.ops.aten.linear.default)
    layout = initial_layout(layer, 2)
    assert layout is not None
    (reader,) = placed_readers(layer, layout)
    assert reader.node.target is not torch.ops.aten.sin.default
    assert reader.layout.all_features() == frozenset(range(WIDTH))


def test_a_free_number_of_features_has_no_layout() -> None:
    program = capture(Written(lambda m, x: torch.sin(x)).eval(), (torch.randn(2, 5),), dynamic={"x": {1: "width"}})
    assert initial_layout(program.node("x"), 1) is None
