"""Changes of a pass that no claim covers."""

from collections.abc import Iterable, Iterator

from torch import fx

from flowopt.rewrite.edit import Claim


def unclaimed_changes(before: fx.Graph, after: fx.Graph, claims: Iterable[Claim]) -> Iterator[str]:
    """One sentence per node that existed before and was changed other than by a claimed replacement.

    A claim is checked on its own, at its boundary. An edge that was moved past it, or an argument that was written
    in place, would escape that.

    Args:
        before: the graph before the pass.
        after: a changed copy of it.
        claims: everything that the pass replaced, sizes included, in order.
    """
    replaced: dict[str, str] = {}
    for claim in claims:
        replaced[claim.old] = claim.new
    known = {node.name: node for node in before.nodes}
    for node in after.nodes:
        old = known.get(node.name)
        if old is None:
            continue
        wanted = fx.map_arg((old.args, old.kwargs), lambda n: _last(n.name, replaced))
        found = fx.map_arg((node.args, node.kwargs), lambda n: n.name)
        if old.op != node.op or old.target is not node.target and old.target != node.target:
            yield f"{node.name} was {old.target} and became {node.target}"
        elif str(wanted) != str(found):
            yield f"{node.name} read {old.args} {old.kwargs or ''} and reads {node.args} {node.kwargs or ''}"


def _last(name: str, replaced: dict[str, str]) -> str:
    """What a node reads after every replacement: a claim's new value may have been replaced again."""
    seen = {name}
    while name in replaced and replaced[name] not in seen:
        name = replaced[name]
        seen.add(name)
    return name
