"""Which positions each pattern shows."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from flowopt.verification.inputs.masks import ORDINARY_MASKS, MaskPattern, visible_positions


def positions(pattern: MaskPattern, *shape: int, seed: int = 0) -> Tensor:
    return visible_positions(pattern, shape, torch.Generator().manual_seed(seed))


SHAPES: dict[MaskPattern, Callable[[Tensor], bool]] = {
    "ones": lambda m: bool((m == 1).all()),
    "right-padded": lambda m: bool((m.diff(dim=-1) <= 0).all()) and bool((m == 0).any()),
    "left-padded": lambda m: bool((m.diff(dim=-1) >= 0).all()) and bool((m == 0).any()),
    "keep-one": lambda m: bool((m[::2].sum(-1) == 1).all() and (m[1::2] == 1).all()),
    "every-other-keeps-one": lambda m: bool((m[1::2].sum(-1) == 1).all() and (m[::2] == 1).all()),
    "holes": lambda m: bool((m.diff(dim=-1) > 0).any() and (m.diff(dim=-1) < 0).any()),
    "one-row-hidden": lambda m: bool((m[0] == 0).all() and (m[1:].sum(-1) > 0).all()),
}


@pytest.mark.parametrize("pattern", SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_what_they_show(pattern: MaskPattern, seed: int) -> None:
    assert SHAPES[pattern](positions(pattern, 6, 9, seed=seed))


@pytest.mark.parametrize("pattern", ORDINARY_MASKS)
@pytest.mark.parametrize("seed", range(5))
def test_ordinary_ones_never_hide_a_whole_row(pattern: MaskPattern, seed: int) -> None:
    for shape in ((1, 2), (4, 1), (3, 1, 5, 5), (7,)):
        made = positions(pattern, *shape, seed=seed)
        assert tuple(made.shape) == shape
        assert set(made.unique().tolist()) <= {0, 1}
        assert bool((made.sum(-1) > 0).all())


def test_a_single_row_keeps_one() -> None:
    assert int(positions("keep-one", 1, 9).sum()) == 1


def test_a_number_is_visible() -> None:
    assert torch.equal(positions("holes"), torch.tensor(1))
