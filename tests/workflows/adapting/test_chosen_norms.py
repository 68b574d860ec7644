"""Which norms a text names."""

import pytest
import torch

from flowopt.analysis.norm_fit import NormFit
from flowopt.analysis.norm_sites import NormKind, NormSite
from flowopt.errors import UserError
from flowopt.workflows.adapting.chosen_norms import chosen_norms

_PATHS = ("embeddings.norm", "layer.0.attention.norm", "layer.0.norm", "layer.1.attention.norm", "layer.1.norm")
_SCORES = (0.4, 0.1, 0.9, 0.05, 0.2)
_NOTHING = torch.zeros(0, dtype=torch.float64)
SITES = tuple(
    NormSite(f"n{at}", f"x{at}", NormKind.LAYER, path, 2, 8, True, None, at) for at, path in enumerate(_PATHS)
)
FITS = {
    f"n{at}": NormFit(f"n{at}", 9, 0, score, 1.0, 1.0, _NOTHING, _NOTHING, _NOTHING) for at, score in enumerate(_SCORES)
}


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
    assert [site.position for site in chosen_norms(text, SITES, FITS)] == positions


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("best:0", "best:0 of 5 norms"),
        ("best:6", "best:6 of 5 norms"),
        ("5", "there is no norm 5"),
        ("3-1", "there is no norm 3-1"),
        ("decoder.*", "no norm of the model is called 'decoder.*'"),
        ("", "no norm of the model is called ''"),
    ],
)
def test_a_text_that_names_nothing_is_refused(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said.replace("*", r"\*").replace(".", r"\.")):
        chosen_norms(text, SITES, FITS)
