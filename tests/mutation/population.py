"""Which mutants there are: every kind at some of its sites in every program, the same ones each time."""

import zlib

from flowopt.program.program import Program
from tests.mutation.catalogue import KINDS
from tests.mutation.kind import GENERIC, Kind
from tests.mutation.mutant import Mutant, mutant_of
from tests.mutation.programs import program


def population(name: str, *, everywhere: bool = False) -> tuple[Mutant, ...]:
    """The mutants of one program, kinds in the order of the catalogue.

    Args:
        name: of the program.
        everywhere: every kind at every eligible node, which takes half an hour for all programs on two cores.
    """
    made = program(name)
    nodes = eligible if everywhere else chosen
    return tuple(mutant_of(kind.name, node) for kind in KINDS.values() for node in nodes(kind, name, made))


def eligible(kind: Kind, name: str, made: Program) -> tuple[str, ...]:
    """Names of all nodes where a kind can be tried."""
    return tuple(n.name for n in made.graph.nodes if n.op == "call_function" and n.users and kind.eligible(n))


def chosen(kind: Kind, name: str, made: Program) -> tuple[str, ...]:
    """Names of the nodes where a kind is tried in a program.

    A kind of certain operators takes sites spread from the first to the last. One that fits nearly everywhere takes
    a single site, another one for every kind, so that together they cover the program.
    """
    sites = eligible(kind, name, made)
    if len(sites) <= kind.most:
        return sites
    if kind.most == GENERIC:
        return (sites[zlib.crc32(f"{kind.name}/{name}".encode()) % len(sites)],)
    spread = (round(i * (len(sites) - 1) / (kind.most - 1)) for i in range(kind.most))
    return tuple(sites[i] for i in spread)
