"""Capture a module: ``torch.export``, decomposed to functional ATen, state found, outputs named."""

import contextlib
import inspect
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flowopt.errors import CaptureError
from flowopt.program.from_exported import program_from_exported
from flowopt.program.program import Program, Provenance

DimRange = tuple[int, int | None]


def capture(
    module: nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic: Mapping[str, Any] | None = None,
    dims: Mapping[str, DimRange] | None = None,
    eval_mode: bool = False,
) -> Program:
    """Capture a trained module as a Program. The module, its parameters and its mode are left as they were.

    Args:
        module: the model, in eval mode.
        args: example positional inputs.
        kwargs: example inputs by name; numbers, booleans and None among them become constants.
        dynamic: per input of ``forward`` the free axes and the names of their dimensions, such as
            ``{"ids": {0: "batch", 1: "sequence"}, "mask": {0: "batch", 1: "sequence"}}``; for nested inputs the
            same nesting. A dimension named twice is one dimension.
        dims: smallest and largest size of a named dimension (inclusive); ``(1, None)`` where it is not given.
        eval_mode: capture a module that is in train mode as it behaves in eval mode.

    Raises:
        CaptureError: train mode, unknown names, or a model that ``torch.export`` refuses.
    """
    kwargs = dict(kwargs or {})
    training = [name or "the model itself" for name, m in module.named_modules() if m.training]
    if training and not eval_mode:
        raise CaptureError(
            f"the model is in train mode: {', '.join(training[:3])}{' and more' if len(training) > 3 else ''}",
            why="dropout and batch statistics would be captured as they behave in training",
            hint="call model.eval() first, or pass eval_mode=True (--eval)",
        )
    arguments = _named_arguments(module, args, kwargs)
    shapes = _dynamic_shapes(arguments, dynamic or {}, dims or {})
    args, kwargs = _grow_unit_axes(module, args, kwargs, dynamic or {})
    with _in_eval_mode(module):
        exported = _export(module, args, kwargs, shapes if dynamic else None)
    source = f"{type(module).__module__}.{type(module).__qualname__}"
    return program_from_exported(exported, _axis_names(dynamic or {}), Provenance(source, torch.__version__))


def _export(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.export.export(module, args, kwargs, dynamic_shapes=shapes, strict=False)
            return exported.run_decompositions({})
    except Exception as error:
        # torch.export raises some twenty types; the user needs the reason and where it points, not the type.
        raise CaptureError(
            f"torch.export cannot capture {type(module).__name__}: {_first_lines(error)}",
            hint="python -c 'torch.export.export(model, args, dynamic_shapes=...)' shows the full report; a dimension "
            "that the model fixes must be left out of dynamic=",
        ) from error


def _first_lines(error: Exception, most: int = 8) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: " + "\n    ".join(lines[:most])


def _named_arguments(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    try:
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
    except TypeError as error:
        raise CaptureError(f"the example inputs do not fit {type(module).__name__}.forward: {error}") from error
    named: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        named |= value if kind is inspect.Parameter.VAR_KEYWORD else {name: value}
    return named


def _dynamic_shapes(
    arguments: Mapping[str, Any], dynamic: Mapping[str, Any], dims: Mapping[str, DimRange]
) -> dict[str, Any]:
    """``dynamic_shapes`` for torch.export: one Dim object per dimension name."""
    unknown = dynamic.keys() - arguments.keys()
    if unknown:
        raise CaptureError(f"dynamic= names {sorted(unknown)}, but the inputs are {sorted(arguments)}")
    made: dict[str, Any] = {}

    def convert(spec: Any) -> Any:
        if isinstance(spec, str):
            if spec not in made:
                low, high = dims.get(spec, (1, None))
                made[spec] = torch.export.Dim(spec, min=low, max=high)
            return made[spec]
        if isinstance(spec, Mapping):
            return {key: convert(value) for key, value in spec.items()}
        if isinstance(spec, (list, tuple)):
            return type(spec)(convert(value) for value in spec)
        return spec

    shapes = {name: convert(dynamic.get(name)) for name in arguments}
    unused = dims.keys() - made.keys()
    if unused:
        raise CaptureError(f"dims= names {sorted(unused)}, but dynamic= uses {sorted(made)}")
    return shapes


def _axis_names(dynamic: Mapping[str, Any]) -> dict[str, dict[int, str]]:
    """Per flat input (``ids``, ``images_0``: export's spelling of nesting) the name of each free axis."""
    found: dict[str, dict[int, str]] = {}

    def walk(path: tuple[str, ...], spec: Any) -> None:
        if isinstance(spec, Mapping) and all(isinstance(v, str) or v is None for v in spec.values()):
            found["_".join(path)] = {int(axis): name for axis, name in spec.items() if name is not None}
        elif isinstance(spec, Mapping):
            for key, value in spec.items():
                walk((*path, str(key)), value)
        elif isinstance(spec, (list, tuple)):
            for index, value in enumerate(spec):
                walk((*path, str(index)), value)

    for name, spec in dynamic.items():
        walk((name,), spec)
    return found


def _grow_unit_axes(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], dynamic: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Repeat example tensors along free axes of size 1: torch.export would fix such an axis to 1."""
    positional = list(inspect.signature(module.forward).parameters)

    def grown(name: str, value: Any) -> Any:
        spec = dynamic.get(name)
        if not isinstance(value, Tensor) or not isinstance(spec, Mapping):
            return value
        for axis, dimension in spec.items():
            if isinstance(dimension, str) and value.shape[axis] == 1:
                value = torch.cat([value, value], dim=axis)
        return value

    names = positional[: len(args)]
    new_args = tuple(grown(n, a) for n, a in zip(names, args, strict=False)) + tuple(args[len(names) :])
    return new_args, {name: grown(name, value) for name, value in kwargs.items()}


@contextlib.contextmanager
def _in_eval_mode(module: nn.Module) -> Iterator[None]:
    modes = {m: m.training for m in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for m, training in modes.items():
            m.training = training
