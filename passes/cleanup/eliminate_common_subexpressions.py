"""Compute once what is computed twice.

    y = f(x, 3), z = f(x, 3)        ->  y, read where z was read

Two calls are the same when they have the same operator and the same arguments, and read the same values; numbers are
the same when they have the same type and the same bits (0.0 is not -0.0, and 1 is not 1.0). Arithmetic with sizes
counts too.

Numerical effect: BITWISE.

Refuses when:
    graph-output            both are outputs of the model, and the caller gets memory for each; or what one of them
                            reads stayed apart for that reason

Operators that draw random numbers are no sites: two draws are two numbers.

Attributes of the matched operators: any operator; all of its arguments are compared.
"""

import operator
from collections.abc import Callable
from typing import Any, ClassVar

from torch import fx

from flowopt.ir.randomness import draws_random_numbers
from flowopt.program.program import Program
from flowopt.rewrite import Edit, Exactness, RewritePass, Site


class EliminateCommonSubexpressions(RewritePass[fx.Node]):
    """Compute once what is computed twice."""

    exactness: ClassVar[Exactness] = Exactness.BITWISE

    def sites(self, program: Program) -> list[fx.Node]:
        """Calls that an earlier one repeats, what they read being compared the same way."""
        numbers: dict[fx.Node, str] = {}
        seen: dict[str, str] = {}
        repeated, tuples = [], set[Any]()
        for node in program.graph.nodes:
            if node.op != "call_function" or draws_random_numbers(node):
                numbers[node] = f"stored {node.target}" if node.op == "get_attr" else node.name
                continue
            key = _key(node, numbers.__getitem__)
            source = node.args[0] if node.target is operator.getitem else None
            if source in tuples or (key in seen and not _is_tuple(node)):
                repeated.append(node)
            elif key in seen:
                tuples.add(node)  # its elements are the sites
            numbers[node] = seen.setdefault(key, node.name)
        return repeated

    def check(self, site: Site) -> fx.Node:
        earlier = _earlier(site.node) or _earlier_tuple(site.node)
        if earlier is None:
            site.refuse("graph-output", f"what {site.node.name} reads is an output of its own")
        outputs = site.program.graph.output_node().all_input_nodes
        are_outputs = site.node in outputs and earlier in outputs
        site.require(not are_outputs, "graph-output", f"{site.node.name} and {earlier.name} are both outputs", earlier)
        return earlier

    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        index = edit.anchor.args[1] if _is_tuple(plan) else None
        edit.replace(edit.anchor, plan if index is None else edit.call(operator.getitem, plan, index))
        return f"the same as {plan.name}" if index is None else f"element {index} of {plan.name}"


def _earlier(node: fx.Node) -> fx.Node | None:
    """The first call before ``node`` that is the same, now that what both read is."""
    sources = node.all_input_nodes
    same_reads = _readers(sources[0]) if sources else node.graph.find_nodes(op="call_function", target=node.target)
    key = _key(node, _name)
    return next((n for n in sorted(same_reads) if n < node and n.target is node.target and _key(n, _name) == key), None)


def _earlier_tuple(element: fx.Node) -> fx.Node | None:
    """The first call that gives the same tuple as the one that an element is of."""
    source = element.args[0] if element.target is operator.getitem else None
    return _earlier(source) if isinstance(source, fx.Node) and _is_tuple(source) else None


def _readers(source: fx.Node) -> list[fx.Node]:
    """Readers of a value; of a stored tensor, those of all nodes that name it; of a tuple, those of an equal one."""
    if source.op == "get_attr":
        nodes = source.graph.find_nodes(op="get_attr", target=source.target)
        return [user for one in nodes for user in one.users]
    same = _earlier(source) if _is_tuple(source) else None
    return [*source.users, *(same.users if same is not None else ())]


def _is_tuple(node: fx.Node) -> bool:
    return node.op == "call_function" and isinstance(node.meta.get("val"), (tuple, list))


def _name(node: fx.Node) -> str:
    if _is_tuple(node):
        return _key(node, _name)
    return f"stored {node.target}" if node.op == "get_attr" else node.name


def _key(node: fx.Node, number: Callable[[fx.Node], str]) -> str:
    return f"{node.target} {_text(node.args, number)} {_text(dict(sorted(node.kwargs.items())), number)}"


def _text(value: Any, number: Callable[[fx.Node], str]) -> str:
    if isinstance(value, fx.Node):
        return f"%{number(value)}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_text(v, number) for v in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{k}: {_text(v, number)}' for k, v in value.items())}}}"
    return f"{type(value).__name__} {value!r}"
