from dataclasses import dataclass

import pytest

from flowopt.analysis.chosen_sites import chosen_sites
from flowopt.errors import UserError


@dataclass(frozen=True, slots=True)
class Site:
    name: str
    module: str | None
    position: int


SITES = (Site("sdpa", "layer.0.self", 0), Site("sdpa_1", "layer.1.self", 1), Site("sdpa_2", None, 2))


@pytest.mark.parametrize(
    ("wanted", "positions"),
    [(["2", "0"], [0, 2]), (["1-2"], [1, 2]), (["sdpa"], [0]), (["layer.*"], [0, 1]), ([" last "], [2]), ([], [])],
)
def test_sites_are_named_by_position_node_path_or_word(wanted: list[str], positions: list[int]) -> None:
    found = chosen_sites(SITES, wanted, what="attention", words=lambda site: ["last"] if site.position == 2 else [])
    assert [site.position for site in found] == positions


@pytest.mark.parametrize("item", ["3", "2-1", "sdpa_*", "last", ""])
def test_says_what_there_is_where_nothing_is_meant(item: str) -> None:
    with pytest.raises(UserError, match="names no attention") as caught:
        chosen_sites(SITES, ["0", item], what="attention")
    assert caught.value.hint == (
        "the model's attentions are 0: sdpa in layer.0.self; 1: sdpa_1 in layer.1.self; 2: sdpa_2"
    )
