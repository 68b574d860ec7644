"""The program under test, out of what a test gives."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from flowopt.program.capture import capture
from flowopt.program.program import Program

Model = nn.Module | Program
Inputs = tuple[Any, ...] | Mapping[str, Any]


def captured(
    model: Model,
    inputs: Inputs,
    dynamic: Mapping[str, Any] | None,
    dims: Mapping[str, tuple[int, int | None]] | None,
) -> Program:
    """``model`` itself when it is a program, else its capture with ``inputs`` by position or by name."""
    if isinstance(model, Program):
        return model
    args, kwargs = ((), inputs) if isinstance(inputs, Mapping) else (inputs, {})
    return capture(model, args, kwargs, dynamic=dynamic, dims=dims)
