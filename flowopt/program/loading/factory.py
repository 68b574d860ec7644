"""Load a model by calling a factory: ``package.module:function``."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from flowopt.errors import UserError
from flowopt.program.capture import capture
from flowopt.program.loading.from_module import program_of_module
from flowopt.program.loading.imported import called, imported_function
from flowopt.program.program import Program

_FORMS = (
    "one of:\n"
    "a tuple (module, args) or (module, args, kwargs), with example inputs\n"
    "a dictionary with the arguments of flowopt.capture: module, args, kwargs, dynamic, dims\n"
    "a module alone, whose inputs --shape then gives\n"
    "a flowopt.Program"
)
_BRIEF = "(model.eval(), (example_input,))"


def load_factory(
    text: str,
    *,
    eval_mode: bool = False,
    inputs: Mapping[str, Tensor] | None = None,
    weights: Callable[[nn.Module], None] | None = None,
    **options: Any,
) -> Program:
    """Import a factory, call it without arguments, and capture what it returns.

    The current folder is searched too, as ``python -m`` does.

    Args:
        text: ``package.module:function``, or a class whose constructor needs no arguments.
        eval_mode: capture a module in train mode as it behaves in eval mode.
        inputs: example inputs by name; they replace those of the factory.
        weights: puts weights into the module, before it is captured.
        options: ``dynamic`` and ``dims``; they replace those of a dictionary.

    Raises:
        ModelNotFound: no such module or function.
        MissingDependency: it, or its module, imports a package that is not installed.
        UserError: it raises, or returns something else than a model, or a model without example inputs.
    """
    made = called(text, imported_function(text, _FORMS, _BRIEF))
    if isinstance(made, Program):
        given = [*options, *(["inputs"] if inputs else []), *(["weights of a file"] if weights else [])]
        if given:
            raise UserError(
                f"{text} returns a captured Program: {sorted(given)} no longer apply",
                hint="return the module and its example inputs instead: (model.eval(), (example_input,))",
            )
        return made
    arguments = _arguments(text, made)
    if weights is not None:
        weights(arguments["module"])
    if inputs or arguments.keys() == {"module"}:
        kept = {name: value for name, value in (arguments | options).items() if name in ("dynamic", "dims")}
        return program_of_module(arguments["module"], inputs or {}, text, eval_mode=eval_mode, **kept)
    return capture(**(arguments | options), eval_mode=eval_mode)


def arguments_of_factory(text: str) -> dict[str, Any]:
    """What a factory returns, as arguments of ``flowopt.capture``.

    Raises:
        ModelNotFound, MissingDependency: as for ``load_factory``.
        UserError: it raises, or returns no module.
    """
    made = called(text, imported_function(text, _FORMS, _BRIEF))
    if isinstance(made, Program):
        raise UserError(
            f"{text} returns a captured Program, and the module itself is needed",
            hint="return the module and its example inputs instead: (model.eval(), (example_input,))",
        )
    return _arguments(text, made)


def _arguments(text: str, made: Any) -> dict[str, Any]:
    if isinstance(made, Mapping) and isinstance(made.get("module"), nn.Module):
        unknown = made.keys() - {"module", "args", "kwargs", "dynamic", "dims"}
        if unknown:
            raise UserError(f"{text} returns unknown keys {sorted(unknown)}", hint=f"it must return {_FORMS}")
        return dict(made)
    if isinstance(made, tuple) and 2 <= len(made) <= 3 and isinstance(made[0], nn.Module):
        return dict(zip(("module", "args", "kwargs"), made, strict=False))
    if isinstance(made, nn.Module):
        return {"module": made}
    raise UserError(f"{text} returns {type(made).__name__}", hint=f"it must return {_FORMS}")
