"""What converters build with: emits Relax expressions, and knows what torch recorded for the node being converted."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from flowopt.lowering.tvm.importing.sizes import number_expression, size_expression

Value = Any  # a Relax variable, a number, a size (an int64 expression), None, or a tuple of them

_HALVES = ("float16", "bfloat16")


class Unsupported(Exception):
    """A converter was given an argument that it has no form for; the text says which."""


class Maker:
    """Emits into one function, node by node.

    Attributes:
        builder: ``relax.BlockBuilder`` inside a dataflow block.
        node: the node being converted.
        recorded: what torch recorded for it: a fake tensor, or a tuple of them.
    """

    def __init__(self, builder: Any, variables: Mapping[str, Any]) -> None:
        self.builder = builder
        self._variables = variables
        self.node: fx.Node
        self.recorded: Any = None

    def size(self, size: Any) -> Any:
        """A recorded size as an int64 expression."""
        return size_expression(size, self._variables)

    def number(self, number: torch.SymFloat) -> Any:
        """A floating number made of sizes as a float64 expression."""
        return number_expression(number, self._variables)

    @property
    def out_dtype(self) -> str:
        """The dtype that torch gives the result."""
        return dtype_name(self._tensor.dtype)

    @property
    def out_shape(self) -> list[Any]:
        """The sizes that torch gives the result."""
        return [self.size(s) for s in self._tensor.shape]

    @property
    def work_dtype(self) -> str:
        """The dtype to compute in: torch's kernels compute half-precision results in float32 and round once."""
        return wide(self.out_dtype)

    @property
    def _tensor(self) -> Tensor:
        found = self.recorded[0] if isinstance(self.recorded, (tuple, list)) else self.recorded
        assert isinstance(found, Tensor), "the converters of sizes make no tensors"
        return found

    def emit(self, expression: Any) -> Any:
        """The expression bound to a variable, whose dtype and sizes can be read."""
        return self.builder.emit(expression)

    def compute(
        self, shape: Sequence[Any], body: Callable[..., Any], *tensors: Any, sizes: Sequence[Any] = (), name: str
    ) -> Any:
        """One loop nest over ``shape``: ``body(index, sizes, *tensors)`` is the element at an index.

        ``sizes`` are the free sizes that the body reads: inside a kernel they have names of its own.
        """
        from tvm import te, tirx

        def kernel(own_shape: Any, own_sizes: Any, *inputs: Any) -> Any:
            return te.compute(tuple(own_shape), lambda *index: body(index, own_sizes, *inputs), name=name)

        whole = [tirx.IntImm("int64", s) if isinstance(s, int) else s for s in (*shape, *sizes)]
        rank = len(shape)
        return self.builder.emit_te(kernel, whole[:rank], whole[rank:], *tensors, primfunc_name_hint=name)

    def constant(self, value: Any, dtype: str) -> Any:
        """A number or a small array as a constant of the function."""
        import numpy as np
        from tvm import relax

        if dtype == "bfloat16":
            return self.emit(relax.op.astype(relax.const(np.asarray(value, "float32"), "float32"), dtype))
        return relax.const(np.asarray(value).astype(dtype), dtype)

    def full(self, shape: Sequence[Any], value: Any, dtype: str) -> Any:
        """A tensor of one number."""
        from tvm import relax

        return self.emit(relax.op.full(list(shape), self.as_tensor(value, dtype), dtype))

    def as_tensor(self, value: Value, dtype: str) -> Any:
        """A tensor, a number or a size as a tensor of a dtype."""
        from tvm import tirx

        if isinstance(value, (bool, int, float)):
            return self.constant(value, dtype)
        if is_tensor(value):
            return self.cast(value, dtype)
        if isinstance(value, tirx.IntImm):
            return self.constant(int(value), dtype)
        return self.compute((), lambda _, sizes: tirx.Cast(dtype, sizes[0]), sizes=[value], name="size")

    def cast(self, tensor: Any, dtype: str) -> Any:
        """The tensor in a dtype, by torch's rules of conversion."""
        from tvm import relax

        if dtype_of(tensor) == dtype:
            return tensor
        if dtype == "bool":
            # A plain cast keeps the lowest bit alone.
            return self.not_equal(tensor, self.constant(0, dtype_of(tensor)))
        return self.emit(relax.op.astype(tensor, dtype))

    def not_equal(self, one: Any, other: Any) -> Any:
        """Whether elements differ; TVM's own operator says that NaN differs from nothing."""
        from tvm import relax

        differ = self.emit(relax.op.not_equal(one, other))
        if "float" not in dtype_of(one):
            return differ
        for operand in (one, other):
            differ = self.emit(relax.op.logical_or(differ, relax.op.isnan(operand)))
        return differ

    def result(self, tensor: Any) -> Any:
        """The tensor in the dtype that torch gives the result."""
        return self.cast(tensor, self.out_dtype)

    def reshape(self, tensor: Any, shape: Sequence[Any]) -> Any:
        """The same elements in another shape."""
        from tvm import relax

        return self.emit(relax.op.reshape(tensor, list(shape)))

    def permute(self, tensor: Any, axes: Sequence[int]) -> Any:
        """The axes in another order."""
        from tvm import relax

        return tensor if list(axes) == list(range(len(axes))) else self.emit(relax.op.permute_dims(tensor, list(axes)))

    def broadcast(self, tensor: Any, shape: Sequence[Any]) -> Any:
        """The tensor with its axes of one element repeated to a shape."""
        from tvm import relax

        if same_shape(shape_of(tensor), shape):
            return tensor
        return self.emit(relax.op.broadcast_to(tensor, list(shape)))

    def argument(self, position: int) -> Tensor:
        """What torch recorded for an argument that is a tensor."""
        node: Any = self.node.args[position]
        value = node.meta["val"]
        assert isinstance(value, Tensor), "the converter asks for a tensor"
        return value


def dtype_name(dtype: torch.dtype) -> str:
    """TVM's name of a dtype; complex ones have none."""
    if dtype.is_complex or dtype.is_floating_point and dtype.itemsize < 2:
        raise Unsupported(f"{dtype} tensors")
    return str(dtype).removeprefix("torch.")


def wide(dtype: str) -> str:
    """float32 for a half-precision dtype, else the dtype."""
    return "float32" if dtype in _HALVES else dtype


def is_tensor(value: Value) -> bool:
    """Whether a value is a tensor rather than a number or a size."""
    from tvm import relax

    return isinstance(getattr(value, "ty", None), relax.TensorType)


def dtype_of(tensor: Any) -> str:
    """Name of the dtype of an emitted tensor."""
    return str(tensor.ty.dtype.dtype)


def shape_of(tensor: Any) -> list[Any]:
    """Sizes of an emitted tensor, int64 expressions."""
    return list(tensor.ty.shape.values)


def rank_of(tensor: Any) -> int:
    """Number of axes."""
    return int(tensor.ty.ndim)


def fixed(size: Any) -> int | None:
    """A size that is known now, else None."""
    from tvm import tirx

    if isinstance(size, int):
        return size
    return int(size) if isinstance(size, tirx.IntImm) else None


def same_shape(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Whether two shapes are written alike."""
    import tvm_ffi

    def same(a: Any, b: Any) -> bool:
        known = fixed(a)
        return known == fixed(b) if known is not None else bool(tvm_ffi.structural_equal(a, b))

    return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))


def axis_of(axis: int, rank: int) -> int:
    """An axis counted from the front."""
    return axis + rank if axis < 0 else axis


def axes_of(axes: Sequence[int] | int | None, rank: int) -> list[int]:
    """Axes counted from the front, sorted; none given means all."""
    if axes is None or axes == []:
        return list(range(rank))
    return sorted(axis_of(a, rank) for a in ([axes] if isinstance(axes, int) else axes))
