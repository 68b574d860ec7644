"""The mutation score of the verifier, and the mutants themselves."""

from functools import cache
from types import ModuleType

import pytest

from flowopt.ir.fingerprint import fingerprint
from flowopt.rewrite.driver import apply
from tests.mutation.catalogue import FAMILIES, KINDS
from tests.mutation.excuses import EXCUSES
from tests.mutation.families import masks
from tests.mutation.kind import Kind
from tests.mutation.mutant import Mutant
from tests.mutation.peers import PEERS, Sample
from tests.mutation.population import population
from tests.mutation.programs import PROGRAMS, program
from tests.mutation.score import Judge, Judged, Score, score

_SMALL = ("deciding", "pooling")


@cache
def _judge(name: str) -> Judge:
    return Judge(name)


def _kinds(family: ModuleType) -> list[Kind]:
    return [kind for kind in vars(family).values() if isinstance(kind, Kind)]


def _in_small_models(family: ModuleType) -> dict[str, tuple[str, Mutant]]:
    """One mutant of every kind of a family that has a site in a small model."""
    names = {kind.name for kind in _kinds(family)}
    found = ((m.kind, (name, m)) for name in reversed(_SMALL) for m in reversed(population(name)) if m.kind in names)
    return dict(found)


def test_there_are_many_kinds_and_no_two_of_one_name() -> None:
    assert sum(len(_kinds(family)) for family in FAMILIES) == len(KINDS) >= 40


# The models without attention have no masks.
@pytest.mark.parametrize(
    "family", [f for f in FAMILIES if f is not masks], ids=lambda family: family.__name__.rpartition(".")[2]
)
def test_every_kind_of_mistake_is_caught_in_a_small_model(family: ModuleType) -> None:
    mutants = _in_small_models(family)
    assert mutants
    judged = [_judge(name)(mutant) for name, mutant in mutants.values()]
    assert "\n".join(str(one) for one in judged if not one.gate and not one.excuse) == ""


def test_a_mutant_changes_one_value_of_the_graph() -> None:
    mutants = _in_small_models(FAMILIES[0])
    for name, mutant in mutants.values():
        changed = program(name).copy()
        application = apply(mutant, changed)
        assert [one.site for one in application.applied] == [mutant.node]
        before, after = (fingerprint(p.graph, p.tensors) for p in (program(name), changed))
        assert before != after


def test_a_mutant_is_the_same_each_time() -> None:
    assert population("deciding") == population("deciding")


def test_a_survivor_is_excused_only_where_the_reason_is_written_down() -> None:
    survivor = Judged("deciding", "bias-dropped", "linear", gate="", reason="", is_same=True)
    assert survivor.excuse == ""
    assert Score((survivor,)).missed == (survivor,)


def test_the_peers_accept_what_is_right_and_see_what_is_grossly_wrong() -> None:
    original = program("deciding")
    sample = Sample(original)
    assert sample.missed_by(original) == tuple(PEERS)
    mutant = next(m for m in population("deciding") if m.kind == "output-centred")
    wrong = original.copy()
    apply(mutant, wrong)
    assert sample.missed_by(wrong) == ()


@pytest.mark.slow
def test_every_excuse_is_of_a_mutant() -> None:
    known = {(name, m.kind, m.node) for name in PROGRAMS for m in population(name)}
    assert set(EXCUSES) <= known


@pytest.mark.slow
def test_every_kind_has_a_site() -> None:
    assert {m.kind for name in PROGRAMS for m in population(name)} == set(KINDS)


@pytest.mark.slow
def test_every_mutant_is_caught_or_cannot_be_seen() -> None:
    found = score()
    assert "\n".join(str(one) for one in found.missed) == ""
    assert len(found.judged) >= 400
    assert len(found.excused) <= 0.05 * len(found.judged)
