"""Children of a bench: Python processes that find flowopt, and the model's code, where this process finds them."""

import os
import signal
import sys
from collections.abc import Sequence


def child_command(module: str, arguments: Sequence[str]) -> list[str]:
    """A fresh Python that runs a module of flowopt.

    Without the current folder in front: a package that lies there by chance is not the one that runs here.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def child_environment() -> dict[str, str]:
    """That of this process, with its search path."""
    path = dict.fromkeys(os.path.abspath(entry) for entry in sys.path)
    return dict(os.environ) | {"PYTHONPATH": os.pathsep.join(path)}


def reason_of(status: int | None, stderr: str, seconds: float) -> str:
    """Why a child gave no answer, in a line.

    Args:
        status: exit status; the negative number of a signal; None: its time was up.
        stderr: what it wrote there, or the end of it.
        seconds: that it had.
    """
    if status is None:
        return f"no answer within {seconds:g} s"
    if status < 0:
        return f"it crashed with {signal.Signals(-status).name}"
    # What hangs below an error's own line is indented.
    said = [line for line in stderr.splitlines() if line.strip() and not line[0].isspace()]
    return f"it ended with code {status}" + (f": {said[-1][:300]}" if said else "")
