"""Run a command to its end, or to the end of its time, whatever it writes."""

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any

ANSWER_BYTES = 64 << 20
# Enough for the report of Python's fault handler.
_STDERR_BYTES = 16 << 10
_CHUNK_BYTES = 1 << 16
_SECONDS_TO_DIE = 5.0


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended.

    Attributes:
        status: exit status; the negative number of the signal that ended it; None: its time was up.
        answer: what it wrote to standard output, up to one byte more than ``ANSWER_BYTES``.
        stderr: the end of what it wrote to standard error.
    """

    status: int | None
    answer: bytes
    stderr: str


def run_process(
    command: list[str], request: bytes, *, environment: Mapping[str, str], folder: str, seconds: float
) -> Ended:
    """Start a command in a session of its own, and kill that session when the command ends or its time is up.

    Threads empty both pipes, so that the process never waits for a reader and no flood is kept.
    """
    answer, stderr = bytearray(), bytearray()
    with tempfile.TemporaryFile() as stdin:
        # A file, because writing to a pipe could block for ever.
        stdin.write(request)
        stdin.seek(0)
        process = subprocess.Popen(
            command,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env=dict(environment),
            start_new_session=True,
        )
    try:
        readers = [_thread(_keep_head, process.stdout, answer), _thread(_keep_tail, process.stderr, stderr)]
        waiting = _thread(_wait, process)
        waiting.join(seconds)
        timed_out = waiting.is_alive()
    finally:
        _end_session(process)
    for reader in readers:
        # They end when the last process that holds the pipe has ended.
        reader.join(_SECONDS_TO_DIE)
    status = None if timed_out else process.returncode
    return Ended(status, bytes(answer), stderr.decode(errors="replace"))


def _thread(target: Callable[..., None], *arguments: Any) -> threading.Thread:
    thread = threading.Thread(target=target, args=arguments, daemon=True)
    thread.start()
    return thread


def _wait(process: subprocess.Popen[bytes]) -> None:
    if not hasattr(os, "waitid"):
        process.wait()
        return
    # The ended process stays in the table, so that its session's number is not given to another before the kill.
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


def _end_session(process: subprocess.Popen[bytes]) -> None:
    if hasattr(os, "killpg"):
        # macOS forbids to signal a group in which all have ended.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    # A process that the system cannot stop at once, as one that waits for a broken disk, is left to die.
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_SECONDS_TO_DIE)


def _keep_head(pipe: IO[bytes], kept: bytearray) -> None:
    with pipe:
        while chunk := os.read(pipe.fileno(), _CHUNK_BYTES):
            kept.extend(chunk[: ANSWER_BYTES + 1 - len(kept)])


def _keep_tail(pipe: IO[bytes], kept: bytearray) -> None:
    with pipe:
        while chunk := os.read(pipe.fileno(), _CHUNK_BYTES):
            kept.extend(chunk)
            del kept[:-_STDERR_BYTES]
