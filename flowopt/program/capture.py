"""Capture a module: ``torch.export``, decomposed to functional ATen, state found, outputs named."""

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from flowopt.errors import CaptureError
from flowopt.ir.quiet import quiet
from flowopt.program.free_axes import DimRange, free_axes
from flowopt.program.from_exported import program_from_exported
from flowopt.program.program import Program, Provenance


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
    exported, names = _exported(module, args, kwargs, dynamic, dims, eval_mode, is_functional=True)
    source = f"{type(module).__module__}.{type(module).__qualname__}"
    return program_from_exported(exported, names, Provenance(source, torch.__version__))


def exported_module(
    module: nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic: Mapping[str, Any] | None = None,
    dims: Mapping[str, DimRange] | None = None,
) -> ExportedProgram:
    """What ``torch.export`` alone makes of a module in eval mode; arguments and errors as for ``capture``."""
    return _exported(module, args, kwargs, dynamic, dims, eval_mode=False, is_functional=False)[0]


def _exported(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None,
    dynamic: Mapping[str, Any] | None,
    dims: Mapping[str, DimRange] | None,
    eval_mode: bool,
    *,
    is_functional: bool,
) -> tuple[ExportedProgram, dict[str, dict[int, str]]]:
    """The exported module, and the names of free axes by input."""
    kwargs = dict(kwargs or {})
    if not isinstance(args, (tuple, list)):
        raise CaptureError(
            f"args is {type(args).__name__}, not a tuple of inputs",
            hint="capture(model, (x,)) by position, capture(model, kwargs={'x': x}) by name",
        )
    training = [name or "the model itself" for name, m in module.named_modules() if m.training]
    if training and not eval_mode:
        first = f"{', '.join(training[:3])}{' and more' if len(training) > 3 else ''}"
        raise CaptureError(
            f"the model is in train mode (train-mode): {first}",
            why="dropout and batch statistics would be captured as they behave in training",
            hint="or call model.eval() first",
            retry=(("--eval", ""),),
        )
    arguments = _named_arguments(module, args, kwargs, is_dynamic=bool(dynamic))
    free = free_axes(arguments, dynamic or {}, dims or {})
    args, kwargs = _with_values(module, args, kwargs, free.arguments)
    with in_eval_mode(module):
        return _export(module, args, kwargs, free.shapes if dynamic else None, is_functional), free.names


def _export(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any, is_functional: bool
) -> ExportedProgram:
    try:
        with quiet():
            exported = torch.export.export(module, args, kwargs, dynamic_shapes=shapes, strict=False)
            return exported.run_decompositions({}) if is_functional else exported
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


def _named_arguments(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, is_dynamic: bool
) -> dict[str, Any]:
    try:
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
    except TypeError as error:
        raise CaptureError(
            f"the example inputs do not fit {type(module).__name__}.forward: {error}",
            why=f"it is {type(module).__name__}.forward{inspect.signature(module.forward)}",
            hint="give each input that it requires, by position or by name",
        ) from error
    named: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        if bound.signature.parameters[name].kind is not inspect.Parameter.VAR_KEYWORD:
            named[name] = value
            continue
        if is_dynamic:
            raise CaptureError(
                f"forward takes {sorted(value)} through **{name}, which torch.export cannot combine with dynamic=",
                hint="wrap the model in a module whose forward names these inputs",
            )
        named |= value
    return named


def _with_values(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], named: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same call with other values: each positional stays positional, names come in the order of ``forward``."""
    positional: list[Any] = []
    for name, parameter in inspect.signature(module.forward).parameters.items():
        if len(positional) == len(args):
            break
        is_rest = parameter.kind is inspect.Parameter.VAR_POSITIONAL
        positional += named[name] if is_rest else [named[name]]
    return tuple(positional), {name: value for name, value in named.items() if name in kwargs}


@contextlib.contextmanager
def in_eval_mode(module: nn.Module) -> Iterator[None]:
    modes = {m: m.training for m in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for m, training in modes.items():
            m.training = training
