"""Which norms a text names."""

import dataclasses

import pytest
import torch

from flowopt.analysis.norm_fit import NormFit
from flowopt.analysis.norm_sites import NormKind, NormSite
from flowopt.errors import UserError
from flowopt.workflows.adapting.wanted_norms import wanted_norms

_PATHS = ("embeddings.norm", "layer.0.attention.norm", "layer.0.norm", "layer.1.attention.norm", "layer.1.norm")
_SCORES = (0.4, 0.1, 0.9, 0.05, 0.2)
_NOTHING = torch.zeros(0, dtype=torch.float64)
SITES = tuple(
    NormSite(f"n{at}", f"x{at}", NormKind.LAYER, path, 2, 8, True, None, at) for at, path in enumerate(_PATHS)
)
FITS = {f"n{at}": NormFit(f"n{at}", 9, 0, score, 1.0, 1.0, *[_NOTHING] * 4) for at, score in enumerate(_SCORES)}
SCORES = {name: fit.score for name, fit in FITS.items()}


@pytest.mark.parametrize(
    ("text", "positions"),
    [
        ("all", [0, 1, 2, 3, 4]),
        ("best:2", [1, 3]),
        ("best:5", [0, 1, 2, 3, 4]),
        ("4,0", [0, 4]),
        ("1-3", [1, 2, 3]),
        ("0, 3-4", [0, 3, 4]),
        ("layer.*.attention.*", [1, 3]),
        ("embeddings.norm,best:1", [0, 3]),
    ],
)
def test_a_text_names_norms_in_graph_order(text: str, positions: list[int]) -> None:
    assert [site.position for site in wanted_norms(text, SITES, FITS, SCORES)] == positions


def test_norms_of_massive_activations_are_the_best_last() -> None:
    fits = FITS | {"n3": dataclasses.replace(FITS["n3"], massive=2)}
    assert [site.position for site in wanted_norms("best:4", SITES, fits, SCORES)] == [0, 1, 2, 4]


@pytest.mark.parametrize("text", ["best:0", "best:6", "5", "3-1", "decoder.*", "", "all,", "best"])
def test_a_text_that_names_nothing_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="of 5 norms|names no norm"):
        wanted_norms(text, SITES, FITS, SCORES)
