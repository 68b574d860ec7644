"""The pairs that the row of false alarms is measured on."""

from collections import Counter

import pytest

from flowopt.rewrite.base import Exactness
from tests.goals.alarms import ROWS
from tests.mutation.right.kinds import KINDS
from tests.mutation.right.models import SMALL, program
from tests.mutation.right.pairs import MODELS, enumerated, sites


def test_there_are_enough_kinds_and_few_claim_equal_bits() -> None:
    exact = [kind for kind in KINDS.values() if kind.exactness is Exactness.EXACT]
    assert len(exact) >= 80


def test_a_site_is_a_node_that_the_kind_accepts() -> None:
    found = sites(KINDS["merged-siblings"], program("tokens"))
    assert found == ["linear"]  # queries, keys and values read one input; the head reads another


@pytest.mark.slow
def test_pairs_are_many_and_balanced() -> None:
    pairs = list(enumerated())
    assert len(pairs) == len(set(pairs)) >= 2000
    assert len({p.model for p in pairs} - set(SMALL)) >= 5
    assert max(p.seed for p in pairs) < 8
    kinds = Counter(p.kind for p in pairs)
    assert kinds.keys() == KINDS.keys()
    assert max(kinds.values()) <= 0.15 * len(pairs)


@pytest.mark.slow
def test_different_nodes_come_before_further_seeds() -> None:
    pairs = list(enumerated([KINDS["scaled-linear"], KINDS["exp-by-powers-of-two"]]))
    many = [p for p in pairs if p.kind == "scaled-linear"]
    few = [p for p in pairs if p.kind == "exp-by-powers-of-two"]
    assert len({(p.model, p.node) for p in many}) == len(many) == 24
    assert {p.model for p in many} <= set(MODELS)
    assert [p.seed for p in few] == list(range(8))


@pytest.mark.slow
def test_no_right_rewrite_is_accused() -> None:
    (row,) = ROWS
    measured = row.measure()
    assert measured.is_met, "\n".join((measured.value, *measured.details))
