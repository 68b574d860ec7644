"""Load a model by calling a factory: ``package.module:function``."""

import importlib
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from flowopt.errors import FlowoptError, MissingDependency, ModelNotFound, UserError
from flowopt.program.capture import capture
from flowopt.program.loading.from_module import program_of_module
from flowopt.program.program import Program

_FORMS = (
    "one of:\n"
    "a tuple (module, args) or (module, args, kwargs), with example inputs\n"
    "a dictionary with the arguments of flowopt.capture: module, args, kwargs, dynamic, dims\n"
    "a module alone, whose inputs --shape then gives\n"
    "a flowopt.Program"
)


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
    made = _called(text, _factory(text))
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
    made = _called(text, _factory(text))
    if isinstance(made, Program):
        raise UserError(
            f"{text} returns a captured Program, and the module itself is needed",
            hint="return the module and its example inputs instead: (model.eval(), (example_input,))",
        )
    return _arguments(text, made)


def _factory(text: str) -> Any:
    module_name, _, name = text.partition(":")
    sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and not f"{module_name}.".startswith(f"{error.name}."):
            raise _lacks(text, error) from error
        raise ModelNotFound(
            f"no module {module_name!r}",
            hint=f"write {module_name.replace('.', '/')}.py here, with a function {name}() that returns "
            "(model.eval(), (example_input,))\nor run from the folder that holds it, or install its package",
        ) from error
    finally:
        sys.path.remove("")
    found = getattr(module, name, None)
    if not callable(found):
        raise ModelNotFound(f"module {module_name!r} has no function {name!r}", hint=f"it must return {_FORMS}")
    return found


def _called(text: str, factory: Any) -> Any:
    try:
        return factory()
    except ModuleNotFoundError as error:
        raise _lacks(text, error) from error
    except (FlowoptError, OSError):
        raise
    except Exception as error:
        # Whatever the user's code raises is the user's: where it was raised says more than its type.
        place = traceback.extract_tb(error.__traceback__)[-1]
        first = (str(error).splitlines() or [""])[0]
        where = f"{Path(place.filename).name}:{place.lineno}: {place.line}"
        raise UserError(
            f"{text} raised {type(error).__name__}: {first}",
            why="; ".join([where, *getattr(error, "__notes__", ())]),
            hint="call it in Python alone; --debug shows the traceback here",
        ) from error


def _lacks(text: str, error: ModuleNotFoundError) -> MissingDependency:
    return MissingDependency(f"{text} imports {error.name!r}, which is not installed", hint=f"pip install {error.name}")


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
