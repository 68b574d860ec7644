"""Which right rewrite at which node of which model, with which seed."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from flowopt.program.program import Program
from flowopt.rewrite.site import RefusedError, Site
from tests.mutation.right.kind import Kind
from tests.mutation.right.kinds import KINDS
from tests.mutation.right.models import SMALL, program

MODELS: Final = (*SMALL, "digits-vit", "vit", "resnet", "gpt2", "bert", "llama", "t5", "mobilenet-v2")
SIXTEEN_BITS: Final = ("vit/float16", "tokens/float16", "llama/bfloat16", "volumes/bfloat16")
_OF_A_KIND = 24
_OF_A_KIND_IN_16_BITS = 4
_SEEDS = 8
# What is known of a model is computed once per seed, so large models and kinds of many nodes get few.
_FEW_SEEDS = 3


@dataclass(frozen=True, slots=True)
class Pair:
    """One right rewrite: the kind, the model and the node where it is done, and the seed of its verification."""

    kind: str
    model: str
    node: str
    seed: int

    def __str__(self) -> str:
        return f"{self.kind} at {self.node} of {self.model}, seed {self.seed}"


def sites(kind: Kind, model: Program) -> list[str]:
    """Names of the nodes at which a kind is right, in order."""
    found = []
    for node in kind.nodes(model):
        try:
            kind.check(Site(model, node))
        except RefusedError:
            continue
        found.append(node.name)
    return found


def enumerated(kinds: Iterable[Kind] = KINDS.values()) -> Iterator[Pair]:
    """At most 24 pairs of every kind in float32, and 4 in 16 bits of those that are right there.

    Different nodes come first, the models taking turns; where there are fewer than 24, further seeds follow.
    """
    for kind in kinds:
        yield from _of_kind(kind, MODELS, _OF_A_KIND)
        if kind.keeps_16_bits:
            yield from _of_kind(kind, SIXTEEN_BITS, _OF_A_KIND_IN_16_BITS)


def _of_kind(kind: Kind, models: Sequence[str], most: int) -> Iterator[Pair]:
    places = list(itertools.islice(_in_turns(kind, models), most))
    if len(places) == most:
        yield from (Pair(kind.name, *place, i % _FEW_SEEDS) for i, place in enumerate(places))
        return
    again = (Pair(kind.name, *place, seed) for seed in range(_SEEDS) for place in places)
    yield from itertools.islice((p for p in again if p.model in SMALL or p.seed < _FEW_SEEDS), most)


def _in_turns(kind: Kind, models: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The first site of every model, then the second of every model, and so on."""
    found = [[(model, node) for node in sites(kind, program(model))] for model in models]
    for row in itertools.zip_longest(*found):
        yield from (place for place in row if place is not None)
