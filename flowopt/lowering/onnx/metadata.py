"""Replace the exporter's metadata, which is large and tells of the machine, by one line per node."""

from typing import Any

from torch import fx

NODE_KEY = "flowopt.node"


def replace_metadata(model: Any) -> None:
    """Clear all metadata and doc strings; each node that came from a graph node names it under ``flowopt.node``."""
    model.doc_string = None
    for graph in model.graphs():
        _clear(graph)
        for value in (*graph.inputs, *graph.initializers.values()):
            _clear(value)
    for node in model.graph.all_nodes():
        _clear(node)
        for value in node.outputs:
            _clear(value)
        source = node.meta.get("node")
        name = _source_name(source) if isinstance(source, fx.Node) else ""
        if name:
            node.metadata_props[NODE_KEY] = name


def _clear(item: Any) -> None:
    item.metadata_props.clear()
    item.doc_string = None


def _source_name(node: fx.Node) -> str:
    """Name in the program's graph: the exporter traces the graph again and may number nodes anew."""
    chain = node.meta.get("from_node")
    if not chain:
        return ""
    source = chain[-1]
    while source.from_node:
        source = source.from_node[-1]
    return str(source.name)
