"""A worker process as the measuring side sees it."""

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any, final

from flowopt.measuring.child import child_command, child_environment, reason_of
from flowopt.measuring.contender import Contender

_OPEN_SECONDS = 900.0
_BURST_SECONDS = 300.0
_SECONDS_TO_END = 5.0


class ContenderFailedError(Exception):
    """A contender cannot run this model: an outcome of a measurement, not an error of it."""


@final
class Worker:
    """One contender, open in a process of its own. A context manager: leaving it ends the process."""

    def __init__(self, contender: Contender, inputs: Path, input_names: tuple[str, ...], threads: int) -> None:
        self.contender = contender
        self._folder = tempfile.TemporaryDirectory(prefix="flowopt-bench-", ignore_cleanup_errors=True)
        self.outputs = Path(self._folder.name) / "outputs.safetensors"
        self._stderr = Path(self._folder.name) / "stderr.txt"
        spec = Path(self._folder.name) / "spec.json"
        told = {
            "contender": contender.plain(),
            "inputs": str(inputs),
            "input_names": input_names,
            "outputs": str(self.outputs),
            "threads": threads,
        }
        spec.write_text(json.dumps(told), encoding="utf-8")
        with self._stderr.open("wb") as stderr:
            # A session of its own: what a runtime starts, such as the compilers of torch.compile, ends with it.
            self._process = subprocess.Popen(
                child_command("flowopt.measuring.worker", [str(spec)]),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=child_environment(),
                start_new_session=True,
            )
        self._is_closed = False

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait_ready(self) -> None:
        """Return once the model is loaded and has run.

        Raises:
            ContenderFailedError: it cannot, and why; the worker is closed.
        """
        self._answer(_OPEN_SECONDS)

    def burst(self, seconds: float) -> list[float]:
        """Seconds of each call of one burst.

        Raises:
            ContenderFailedError: the process ended or takes too long; the worker is closed.
        """
        assert self._process.stdin is not None and not self._is_closed
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"burst": seconds}) + "\n")
            self._process.stdin.flush()
        found = self._answer(_BURST_SECONDS)["seconds"]
        return [float(one) for one in found]

    def close(self) -> None:
        """End the process with all that it started, and forget its files."""
        if self._is_closed:
            return
        self._is_closed = True
        self._kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._folder.cleanup()

    def _answer(self, seconds: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        is_late = threading.Event()

        def stop() -> None:
            is_late.set()
            self._kill()

        clock = threading.Timer(seconds, stop)
        clock.start()
        try:
            line = self._process.stdout.readline()
        finally:
            clock.cancel()
        answer: dict[str, Any] = json.loads(line) if line.endswith("\n") else {}
        if not answer:
            answer = {"failed": self._ending(seconds, is_late=is_late.is_set())}
        if "failed" in answer:
            self.close()
            raise ContenderFailedError(str(answer["failed"]))
        return answer

    def _ending(self, seconds: float, *, is_late: bool) -> str:
        status = None
        if not is_late:
            # Its pipe closes a moment before it ends.
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = self._process.wait(_SECONDS_TO_END)
        return reason_of(status, self._stderr.read_text(encoding="utf-8", errors="replace"), seconds)

    def _kill(self) -> None:
        if hasattr(os, "killpg"):
            # macOS forbids to signal a group in which all have ended.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        else:
            self._process.kill()
