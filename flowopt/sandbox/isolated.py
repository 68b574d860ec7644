"""Run a function in a process of its own, so that an untrusted file can neither hang, flood nor crash this one.

The process is a fresh Python with an empty folder, a clean environment, and limits on memory, time and files; it
has no network where the system allows to take it away. It contains accidents and the usual attacks of a file that
is parsed. It does not contain a program that has taken it over: that one has the user's rights to files.
"""

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Final

from flowopt.errors import InternalError
from flowopt.formats.limits import DEFAULT_LIMITS, Limits
from flowopt.sandbox.memory import memory_bytes
from flowopt.sandbox.outcome import Asked, outcome
from flowopt.sandbox.process import run_process

# A process that sleeps or waits for a disk uses no CPU time.
_GRACE_SECONDS = 60.0
# flowopt is loaded from where it was loaded here: another one may be installed.
_START: Final = """\
import sys
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("flowopt", sys.argv[1])
sys.modules["flowopt"] = module_from_spec(spec)
spec.loader.exec_module(sys.modules["flowopt"])
from flowopt.sandbox.child import main
main()
"""
# What Python and torch need to start, and what decides how the names of files are encoded.
_KEPT: Final = (
    "PATH",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
    "SYSTEMROOT",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
)
_FIXED: Final = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
}


def run_isolated(
    function: str, arguments: Mapping[str, Any], *, limits: Limits = DEFAULT_LIMITS, extra_memory: int = 0
) -> Any:
    """Call a function in a fresh process with limits, and return what it returns.

    Args:
        function: ``package.module:function``. It is imported and called, so it never comes from a user's file.
        arguments: JSON values. Paths must be absolute: the process runs in an empty folder of its own.
        limits: ``memory`` and ``seconds`` count. The clock on the wall may show a minute more than ``seconds``.
        extra_memory: bytes on top of the memory limit, such as the size of a file that is mapped privately.

    Returns:
        A JSON value: tuples arrive as lists.

    Raises:
        FlowoptError: what the function raised, as the same class with the same fields.
        MalformedModel: the function needed more memory or time than the limits, crashed the process, or raised
            anything but a FlowoptError. The traceback there is the text of the error's ``__cause__``.
        InternalError: the function cannot be imported, or its result is no JSON value.
    """
    asked = Asked(function, memory_bytes(limits), max(limits.seconds, 1))
    memory = asked.memory + extra_memory if asked.memory else 0
    command = [sys.executable, "-I", "-B", "-X", f"utf8={sys.flags.utf8_mode}", "-c", _START]
    command += [_file_of("flowopt"), str(memory), str(asked.seconds), str(os.getpid())]
    request = {
        "function": function,
        "arguments": dict(arguments),
        "package": _file_of(function.partition(":")[0].partition(".")[0]),
        "path": _search_path(),
    }
    # Deleting must not fail where what was just killed still had a file open.
    with tempfile.TemporaryDirectory(prefix="flowopt-", ignore_cleanup_errors=True) as folder:
        ended = run_process(
            command,
            json.dumps(request).encode(),
            environment=_environment(folder),
            folder=folder,
            seconds=asked.seconds + _GRACE_SECONDS,
        )
    return outcome(ended, asked)


def _environment(folder: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return kept | _FIXED | dict.fromkeys(("HOME", "TMPDIR", "TEMP", "TMP"), folder)


def _file_of(package: str) -> str:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise InternalError(f"there is no package {package!r} to run in a process of its own")
    return os.path.abspath(spec.origin)


def _search_path() -> list[str]:
    """Where this process finds its packages, without the current folder: the model may have been downloaded to it."""
    here = os.path.abspath("")
    return [entry for entry in sys.path if os.path.isabs(entry) and entry != here]
