"""What runs inside a checking process: ``flowopt.sandbox.isolated`` starts it and reads its answer.

The request comes on standard input, the answer leaves on what was standard output, each as one JSON value.
"""

import errno
import faulthandler
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from typing import Any, NoReturn

from flowopt.errors import FlowoptError, InternalError
from flowopt.sandbox.confine import confine
from flowopt.sandbox.shortage import speaks_of_shortage

# Set aside, to tell of the shortage when memory has run out; and what is said when even that is too little.
_SPARE_BYTES = 4 << 20
_NO_MEMORY = b'{"failure": "memory", "traceback": "MemoryError"}'


def main() -> NoReturn:
    """Confine this process, run what the request names, answer, and end without any cleaning up."""
    memory, seconds, parent = (int(text) for text in sys.argv[2:5])
    confine(memory, seconds, parent)
    faulthandler.enable(all_threads=False)
    # What libraries print must not end up in the answer.
    answer = os.dup(1)
    os.dup2(2, 1)
    try:
        line = _answer()
    except MemoryError:
        line = _NO_MEMORY
    with open(answer, "wb") as file:
        file.write(line + b"\n")
    # Destructors of libraries can crash or hang, and the answer is given.
    os._exit(0)


def _answer() -> bytes:
    with open(0, "rb", closefd=False) as file:
        request = json.load(file)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    spare = bytearray(_SPARE_BYTES)
    try:
        function = _function(request)
    except BaseException as error:  # noqa: BLE001 - it is raised again in the parent
        return _told("import", error)
    try:
        result = function(**request["arguments"])
    except BaseException as error:  # noqa: BLE001 - it is raised again in the parent
        del spare
        return _told("raised", error)
    try:
        return json.dumps({"result": result}).encode()
    except (TypeError, ValueError, RecursionError) as error:
        return _told("raised", InternalError(f"{request['function']} returned what JSON cannot hold: {error}"))


def _function(request: Mapping[str, Any]) -> Callable[..., Any]:
    sys.path[:] = dict.fromkeys([*request["path"], *sys.path])
    module, _, name = request["function"].partition(":")
    package = module.partition(".")[0]
    if package not in sys.modules:
        # By its file and not by the search path, so that the folder it lies in provides nothing else.
        spec = spec_from_file_location(package, request["package"])
        if spec is None or spec.loader is None:
            raise ImportError(f"no loader for {request['package']}")
        sys.modules[package] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[package])
    found: Callable[..., Any] = getattr(import_module(module), name)
    return found


def _told(kind: str, error: BaseException) -> bytes:
    return json.dumps(_failure(kind, error)).encode()


def _failure(kind: str, error: BaseException) -> dict[str, Any]:
    if any(_lacked_memory(cause) for cause in _causes(error)):
        return {"failure": "memory", "traceback": _text(error)}
    failure: dict[str, Any] = {
        "failure": kind,
        "type": type(error).__name__,
        "message": _message(error),
        "notes": [str(note) for note in getattr(error, "__notes__", ())],
        "traceback": _text(error),
    }
    if isinstance(error, FlowoptError):
        # A private subclass is known to the parent by the public class above it.
        known = next(base for base in type(error).__mro__ if base.__module__ == FlowoptError.__module__)
        failure |= {
            "failure": "flowopt",
            "type": known.__name__,
            "message": error.message,
            "why": error.why,
            "hint": error.hint,
            "retry": error.retry,
        }
    return failure


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__


def _lacked_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return isinstance(error, (RuntimeError, ImportError)) and speaks_of_shortage(_message(error))


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - the class of a library may not even manage its own text
        return ""


def _text(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))
