"""Memory of stored tensors that goes with what reads them."""

from collections.abc import Collection, Mapping

from torch import Tensor, fx


def freed_bytes(graph: fx.Graph, tensors: Mapping[str, Tensor], readers: Collection[fx.Node]) -> int:
    """Bytes of the stored tensors that nobody but ``readers`` reads; views of one storage count once.

    Args:
        graph: that holds the readers.
        tensors: its stored tensors by name.
        readers: what is to go.
    """
    stored = graph.find_nodes(op="get_attr")
    outside = {_storage(tensors[str(n.target)]) for n in stored if not n.users.keys() <= set(readers)}
    read = {str(n.target) for n in stored if any(user in readers for user in n.users)}
    freed: dict[int, int] = {}
    for name in sorted(read):
        storage = _storage(tensors[name])
        if storage not in outside:
            size = freed.get(storage, 0) + tensors[name].numel() * tensors[name].element_size()
            freed[storage] = min(size, tensors[name].untyped_storage().nbytes())
    return sum(freed.values())


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
