"""Import what ``package.module:function`` names, and call it."""

import importlib
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from flowopt.errors import FlowoptError, MissingDependency, ModelNotFound, UserError

IMPORTED_NAME: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def imported_function(text: str, returns: str, brief: str) -> Callable[..., Any]:
    """The function that ``package.module:function`` names. The current folder is searched too, as ``python -m`` does.

    Args:
        text: the module and the function, or a class whose constructor needs no arguments.
        returns: what the function is to return, for messages: a noun, or a list of them.
        brief: the shortest example of it.

    Raises:
        ModelNotFound: no such module or function.
        MissingDependency: the module imports a package that is not installed.
    """
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
            f"{brief}\nor run from the folder that holds it, or install its package",
        ) from error
    finally:
        sys.path.remove("")
    found: Callable[..., Any] | None = getattr(module, name, None)
    if not callable(found):
        raise ModelNotFound(f"module {module_name!r} has no function {name!r}", hint=f"it must return {returns}")
    return found


def called(text: str, function: Callable[[], Any]) -> Any:
    """What the function returns.

    Raises:
        MissingDependency: it imports a package that is not installed.
        UserError: it raises; the message says what and where.
    """
    try:
        return function()
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
