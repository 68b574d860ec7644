"""Compute at build time what depends on stored tensors alone.

    transpose(w), w * mask, g * v / norm(v), arange(n) < arange(n).unsqueeze(1), ...    ->  one stored tensor

A site is the last node of such an expression: what reads it depends on an input, or is an output. Weight norm, spectral
norm, weight standardization and masks over weights are expressions of this kind, and fall out of it.

Numerical effect: BITWISE. The expression is evaluated once, by the operators and in the dtypes that the model would use
at every run; nothing is raised or rounded anew.

Refuses when:
    graph-output            the value is an output of the model
    grows-too-much          the value takes more bytes than ``max_growth`` and the stored tensors that nobody else reads

State that the model changes is an input, and so never constant; neither are random numbers.

Attributes of the matched operators: every operator that computes one tensor out of stored ones. All of its arguments
are used, because it is run.
"""

from typing import ClassVar

from torch import fx

from flowopt.analysis.freed_bytes import freed_bytes
from flowopt.ir.constants import is_parameter_only, needed_nodes
from flowopt.ir.metadata import recorded_tensor
from flowopt.program.program import Program
from flowopt.rewrite import Edit, Exactness, RewritePass, Site


class FoldConstants(RewritePass[fx.Node]):
    """Compute what depends on stored tensors alone, and store it.

    Attributes:
        max_growth: bytes by which one folded tensor may be larger than what it replaces.
    """

    exactness: ClassVar[Exactness] = Exactness.BITWISE
    max_growth: int = 1048576

    def sites(self, program: Program) -> list[fx.Node]:
        """The last nodes of constant expressions that give one tensor."""
        constant = {n for n in program.graph.nodes if n.op == "call_function" and is_parameter_only(n)}
        tensors = (n for n in program.graph.nodes if n in constant and recorded_tensor(n) is not None)
        return [n for n in tensors if not n.users.keys() <= constant]

    def check(self, site: Site) -> fx.Node:
        node = site.node
        is_output = any(user.op == "output" for user in node.users)
        site.require(not is_output, "graph-output", f"{node.name} is an output of the model")
        value = recorded_tensor(node)
        assert value is not None  # or else it is no site
        size = value.numel() * value.element_size()
        freed = freed_bytes(site.program.graph, site.program.tensors, needed_nodes([node], ()))
        site.require(
            size <= freed + self.max_growth,
            "grows-too-much",
            f"{size:,} bytes would take the place of {freed:,}; max_growth is {self.max_growth:,}",
        )
        return node

    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        count = sum(n.op == "call_function" for n in needed_nodes([plan], ()))
        edit.replace(plan, edit.evaluated(plan))
        return f"{count} operator{'s' if count > 1 else ''} -> one stored tensor"
