"""A kind of right rewrite, and the pass that fires at one named node."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import fx
from torch._dispatch.python import enable_python_dispatcher

from flowopt.ir.metadata import recorded_tensor
from flowopt.program.program import Program
from flowopt.rewrite import Edit, Exactness, RewritePass, Site
from tests.mutation.right.term import Term

Build = Callable[[Edit, fx.Node], Term]
Fits = Callable[[fx.Node], bool]


@dataclass(frozen=True, slots=True)
class Kind:
    """One way to compute the same value differently.

    Attributes:
        name: in reports and in test ids.
        anchors: operators at whose nodes it can fire.
        check: as in a pass: the plan of a site, or a refusal.
        rewrite: as in a pass.
        exactness: what it claims.
        keeps_16_bits: right in float16 and bfloat16 too: no norm, softmax or activation is taken apart there.
    """

    name: str
    anchors: tuple[Any, ...]
    check: Callable[[Site], Any]
    rewrite: Callable[[Edit, Any], str]
    exactness: Exactness = Exactness.EXACT
    keeps_16_bits: bool = False

    def nodes(self, program: Program) -> Iterable[fx.Node]:
        """Nodes of a program that may be sites, in order."""
        return (n for n in program.graph.nodes if n.op == "call_function" and n.target in self.anchors)


def built(
    name: str,
    anchors: tuple[Any, ...],
    build: Build,
    fits: Fits = lambda node: True,
    *,
    exactness: Exactness = Exactness.EXACT,
    keeps_16_bits: bool = False,
) -> Kind:
    """A kind that replaces an anchor by what ``build`` makes.

    Args:
        name: of the kind.
        anchors: operators.
        build: the new value, which may replace neighbours of the anchor too.
        fits: whether the rewrite is right at this node.
        exactness: of the rewrite.
        keeps_16_bits: see ``Kind``.
    """

    def check(site: Site) -> fx.Node:
        site.require(recorded_tensor(site.node) is not None, "missing-metadata", "it is no tensor")
        site.require(fits(site.node), "unsupported-spelling", f"{name} does not fit here")
        return site.node

    def rewrite(edit: Edit, plan: fx.Node) -> str:
        edit.replace(plan, build(edit, plan).node)
        return name

    return Kind(name, anchors, check, rewrite, exactness, keeps_16_bits)


def borrowed(name: str, rewrite_pass: RewritePass[Any], *, keeps_16_bits: bool = False) -> Kind:
    """A pass that exists already, one site at a time."""
    return Kind(
        name, rewrite_pass.anchors, rewrite_pass.check, rewrite_pass.rewrite, rewrite_pass.exactness, keeps_16_bits
    )


def at_node(kind: Kind, node: str) -> RewritePass[Any]:
    """The pass that carries out ``kind`` at one node and looks nowhere else."""

    def rewrite(self: Any, edit: Edit, plan: Any) -> str:
        # Without it some operators (constant_pad_nd, im2col, unfold) fix free sizes at their traced values while
        # their shapes are propagated, in every copy of the program.
        with enable_python_dispatcher():
            return kind.rewrite(edit, plan)

    members = {
        "exactness": kind.exactness,
        "anchors": kind.anchors,
        "sites": lambda self, program: [n for n in kind.nodes(program) if n.name == node],
        "check": lambda self, site: kind.check(site),
        "rewrite": rewrite,
    }
    title = "".join(word.capitalize() for word in kind.name.split("-"))
    made: RewritePass[Any] = type(title, (RewritePass,), members)()
    return made
