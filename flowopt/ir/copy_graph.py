"""Copy a graph and keep every name."""

from torch import fx


def copy_graph(graph: fx.Graph) -> fx.Graph:
    """A copy whose nodes have the names of the originals; metadata is copied one level deep."""
    copied = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    copied.output(copied.graph_copy(graph, mapping))
    for old, new in mapping.items():
        keep_name(new, old.name)
    return copied


def keep_name(node: fx.Node, name: str) -> None:
    """Give a node a name that torch.fx refused because it is a builtin's: ``forward(self, input)`` is common.

    torch.export names placeholders so itself. No generated name can be one of these, so none clashes.
    """
    if node.name != name:
        node.name = name
