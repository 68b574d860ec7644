"""The graph around a loop: it begins as the prologue and takes in everything else."""

from collections.abc import Mapping, Sequence
from typing import Any, final

from torch import Tensor

from flowopt.lowering.onnx.names import free_name
from flowopt.lowering.onnx.weights import EXTERNAL_BYTES, same_memory


@final
class Outer:
    """The main graph of a sampler's model while the loop and the epilogue are added to it.

    Attributes:
        model: an ``onnx_ir.Model``, at first the prologue's.
        values: what a later part can read, by name: the sampler's inputs and the prologue's outputs, later the state.
    """

    def __init__(self, model: Any, outputs: Sequence[str]) -> None:
        self.model = model
        graph = model.graph
        self.values: dict[str, Any] = {value.name: value for value in graph.inputs}
        # The name of a value and what a part calls it differ where an output has an input's name.
        self.values |= zip(outputs, list(graph.outputs), strict=True)
        graph.outputs.clear()
        self._stored: dict[object, Any] = {}
        for value in graph.initializers.values():
            self._stored.setdefault(same_memory(value.const_value), value)

    def append(self, *nodes: Any) -> None:
        """Add nodes behind all others."""
        self.model.graph.extend(nodes)

    def import_opsets(self, opsets: Mapping[str, int]) -> None:
        """Take over the versions of operators that a part was written for."""
        self.model.graph.opset_imports.update(opsets)

    def take(self, value: Any) -> Any:
        """Move an initializer here; one of the same memory as another becomes that one.

        Returns:
            The initializer that it is now.
        """
        del value.graph.initializers[value.name]
        known = self._stored.get(same_memory(value.const_value))
        if known is None:
            self._register(value)
            return value
        value.replace_all_uses_with(known)
        return known

    def take_all(self, graph: Any) -> None:
        """Move every initializer of a graph here."""
        for value in list(graph.initializers.values()):
            self.take(value)

    def take_weights(self, graph: Any) -> None:
        """Move initializers here that are too large for the model file.

        Smaller ones stay: a shape that is stored inside of a loop is known where the loop's sizes are inferred.
        """
        for value in list(graph.initializers.values()):
            if value.const_value.nbytes >= EXTERNAL_BYTES:
                self.take(value)

    def take_nodes(self, graph: Any) -> None:
        """Move all nodes of a graph here, behind the others."""
        nodes = list(graph)
        graph.remove(nodes)
        self.append(*nodes)

    def finish(self, graph: Any, inputs: Sequence[str]) -> None:
        """Add the epilogue, which reads values by name, and return what it returns."""
        for given, name in zip(list(graph.inputs), inputs, strict=True):
            given.replace_all_uses_with(self.values[name])
        returned = list(graph.outputs)
        graph.outputs.clear()
        self.take_all(graph)
        self.take_nodes(graph)
        self.model.graph.outputs.extend(returned)

    def stored(self, name: str, tensor: Tensor) -> Any:
        """A new initializer."""
        import onnx_ir
        from onnx_ir.tensor_adapters import TorchTensor

        const_value = TorchTensor(tensor.detach().contiguous(), name=name)
        value = onnx_ir.Value(
            name=name,
            shape=onnx_ir.Shape(const_value.shape),
            type=onnx_ir.TensorType(const_value.dtype),
            const_value=const_value,
        )
        self._register(value)
        return value

    def _register(self, value: Any) -> None:
        value.name = free_name(value.name, self.model.graph.initializers.keys())
        self.model.graph.register_initializer(value)
        self._stored.setdefault(same_memory(value.const_value), value)
