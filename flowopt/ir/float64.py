"""Raise every floating dtype of a computation to float64: in tensors and in operator arguments.

``module.double()`` is not an oracle: a model's own ``.to(float32)`` stays and leaves errors of 5e-7.
Raising happens per operator call, on the functional graph, where nothing can hide a dtype.
"""

from typing import Any

import torch
from torch import Tensor, fx

RAISED_DTYPE = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex32: torch.complex128,
    torch.complex64: torch.complex128,
}


def raised_tensor(tensor: Tensor) -> Tensor:
    """The same values in float64 (complex128); integers, booleans and float64 come back unchanged."""
    wanted = RAISED_DTYPE.get(tensor.dtype)
    return tensor if wanted is None else tensor.to(wanted)


def raised_arguments(
    node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Operator arguments with every floating dtype raised.

    A factory (``arange``, ``full``) without a dtype follows torch's default dtype, which is not part of
    the graph; when its recorded value is floating, float64 is asked for explicitly.
    """
    args = tuple(_raised_dtype(a) for a in args)
    kwargs = {name: _raised_dtype(value) for name, value in kwargs.items()}
    if _is_floating_factory(node) and kwargs.get("dtype") is None:
        kwargs["dtype"] = torch.float64
    return args, kwargs


def _raised_dtype(value: Any) -> Any:
    return RAISED_DTYPE.get(value, value) if isinstance(value, torch.dtype) else value


def _is_floating_factory(node: fx.Node) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    arguments = node.target._schema.arguments
    takes_tensor = any("Tensor" in str(a.type) for a in arguments)
    takes_dtype = any(a.name == "dtype" for a in arguments)
    recorded = node.meta.get("val")
    return takes_dtype and not takes_tensor and isinstance(recorded, Tensor) and recorded.is_floating_point()
