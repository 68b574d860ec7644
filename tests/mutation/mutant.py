"""A mutant: a pass that is wrong at one node of one program, and looks like any other pass."""

from collections.abc import Iterable
from typing import ClassVar

from torch import fx

from flowopt.program.program import Program
from flowopt.rewrite import Edit, Exactness, RewritePass, Site
from tests.mutation.catalogue import KINDS


class Mutant(RewritePass[fx.Node]):
    """Makes one mistake at one node and claims that the value stays."""

    exactness: ClassVar[Exactness] = Exactness.EXACT

    kind: str
    node: str

    def sites(self, program: Program) -> Iterable[fx.Node]:
        """The one node."""
        return [program.node(self.node)]

    def check(self, site: Site) -> fx.Node:
        """Never refuses."""
        return site.node

    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        """Build the wrong value and claim it."""
        made = KINDS[self.kind].build(edit, plan)
        if made is not None:
            edit.replace(plan, made)
        return self.kind


class BitwiseMutant(Mutant):
    """One that declares equal bits."""

    exactness: ClassVar[Exactness] = Exactness.BITWISE


def mutant_of(kind: str, node: str) -> Mutant:
    """The pass that makes one kind of mistake at one node."""
    is_bitwise = KINDS[kind].exactness is Exactness.BITWISE
    return BitwiseMutant(kind, node) if is_bitwise else Mutant(kind, node)
