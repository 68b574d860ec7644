"""A worker process as the measuring side sees it."""

import contextlib
import json
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, final

from flowopt.measuring.contender import Contender

_OPEN_SECONDS = 900.0
_BURST_SECONDS = 300.0


class ContenderFailedError(Exception):
    """A contender cannot run this model: an outcome of a measurement, not an error of it."""


@final
class Worker:
    """One contender, open in a process of its own. A context manager: leaving it ends the process."""

    def __init__(self, contender: Contender, inputs: Path, input_names: tuple[str, ...], threads: int) -> None:
        self.contender = contender
        self._folder = tempfile.TemporaryDirectory(prefix="flowopt-bench-")
        self.outputs = Path(self._folder.name) / "outputs.safetensors"
        spec = Path(self._folder.name) / "spec.json"
        told = {
            "contender": contender.plain(),
            "inputs": str(inputs),
            "input_names": input_names,
            "outputs": str(self.outputs),
            "threads": threads,
        }
        spec.write_text(json.dumps(told), encoding="utf-8")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "flowopt.measuring.worker", str(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait_ready(self) -> None:
        """Return once the model is loaded and has run.

        Raises:
            ContenderFailedError: it cannot, and why.
        """
        self._answer(_OPEN_SECONDS)

    def burst(self, seconds: float) -> list[float]:
        """Seconds of each call of one burst.

        Raises:
            ContenderFailedError: the process ended or takes too long.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"burst": seconds}) + "\n")
            self._process.stdin.flush()
        found = self._answer(_BURST_SECONDS)["seconds"]
        return [float(one) for one in found]

    def close(self) -> None:
        """End the process and forget its files."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._folder.cleanup()

    def _answer(self, seconds: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        clock = threading.Timer(seconds, self._process.kill)
        clock.start()
        try:
            line = self._process.stdout.readline()
        finally:
            is_late = not clock.is_alive()
            clock.cancel()
        if not line:
            reason = f"no answer within {seconds:g} s" if is_late else f"it ended with code {self._process.wait()}"
            raise ContenderFailedError(f"{self.contender.name}: {reason}")
        answer: dict[str, Any] = json.loads(line)
        if "failed" in answer:
            raise ContenderFailedError(str(answer["failed"]))
        return answer
