"""Run TVM's compiler in a process of its own: when it crashes, nothing here is lost."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from flowopt.errors import BackendFailed
from flowopt.lowering.tvm.job import Job
from flowopt.sandbox.process import Ended, run_process

_DAY_SECONDS = 86_400.0
_LINES_SHOWN = 3


def run_compiler(folder: Path, job: Job) -> dict[str, Any]:
    """Compile the job that lies in a folder.

    Returns:
        What ``build`` found.

    Raises:
        BackendFailed: the compiler raised, crashed, or was killed.
    """
    job.save(folder)
    # Packages are found where this process finds them; the job's folder provides none.
    path = os.pathsep.join(dict.fromkeys(os.path.abspath(entry) for entry in sys.path))
    ended = run_process(
        [sys.executable, "-P", "-m", "flowopt.lowering.tvm.build"],
        b"",
        environment={**os.environ, "PYTHONPATH": path, "TMPDIR": str(folder)},
        folder=str(folder),
        seconds=_DAY_SECONDS,
    )
    if ended.status == 0 and ended.answer.endswith(b"\n"):
        found: dict[str, Any] = json.loads(ended.answer)
        return found
    raise _failure(ended)


def _failure(ended: Ended) -> BackendFailed:
    lines = [line.strip() for line in ended.stderr.splitlines() if line.strip()]
    why = "\n".join(line[:200] for line in lines[-_LINES_SHOWN:])
    if ended.status is not None and ended.status < 0:
        name = signal.Signals(-ended.status).name
        what = f"TVM's compiler crashed ({name})"
        hint = "use --target cpu; where memory ran out (SIGKILL), a machine with more of it"
    else:
        what = "TVM's compiler failed"
        hint = "use --target cpu; --debug shows all that it said"
    error = BackendFailed(what, why=why or "it said nothing", hint=f"{hint}. Nothing was written")
    error.__cause__ = RuntimeError(ended.stderr)
    return error
