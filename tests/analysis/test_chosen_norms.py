import pytest

from flowopt.analysis.chosen_norms import chosen_norms
from flowopt.analysis.norm_sites import NormKind, NormSite
from flowopt.analysis.streams import Placement
from flowopt.errors import UserError


def site(position: int, kind: NormKind, module: str | None, placement: Placement | None) -> NormSite:
    return NormSite(f"norm_{position}", "x", kind, module, 2, 8, False, placement, position)


SITES = (
    site(0, NormKind.RMS, "blocks.0.first", Placement.PRE),
    site(1, NormKind.LAYER, "blocks.0.second", Placement.POST),
    site(2, NormKind.RMS, "blocks.1.first", Placement.PRE),
    site(3, NormKind.BATCH, None, None),
)


@pytest.mark.parametrize(
    ("wanted", "positions"),
    [
        (["3", "0"], [0, 3]),
        (["1-2"], [1, 2]),
        (["norm_1"], [1]),
        (["blocks.0.second"], [1]),
        (["blocks.*.first"], [0, 2]),
        (["post", "batch"], [1, 3]),
        (["pre", "rms", "0-1"], [0, 1, 2]),
        ([], []),
    ],
)
def test_norms_are_named_in_every_way(wanted: list[str], positions: list[int]) -> None:
    assert [s.position for s in chosen_norms(SITES, wanted)] == positions


@pytest.mark.parametrize("item", ["4", "2-1", "norm_9", "group", "peri", "blocks.2.*", ""])
def test_says_what_there_is_where_nothing_is_meant(item: str) -> None:
    with pytest.raises(UserError, match="names no norm") as caught:
        chosen_norms(SITES, ["0", item])
    assert "1: norm_1 in blocks.0.second; 2: norm_2 in blocks.1.first; 3: norm_3" in caught.value.hint
