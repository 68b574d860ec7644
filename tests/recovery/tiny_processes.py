"""Recoveries in processes of their own: whole, killed on the way, resumed, and several together."""

import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

_MODULE = "tests.recovery.tiny_recovery"
# Processes that wait for each other would do so for ever.
_LIMIT_SECONDS = 300
_TOGETHER = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def run_alone(result: Path, *settings: str, checkpoint: Path | None = None, resume: bool = False) -> dict[str, Tensor]:
    """What one process reached."""
    how = "resume" if resume else "begin"
    _run([sys.executable, "-m", _MODULE, str(checkpoint or "-"), str(result), how, *settings])
    return load_file(result)


def run_together(result: Path, *settings: str) -> dict[str, Tensor]:
    """What two processes reached, joined by gloo."""
    _run([sys.executable, *_TOGETHER, "-m", _MODULE, "-", str(result), "begin", *settings])
    return load_file(result)


def said_together(*settings: str) -> str:
    """What two processes wrote beside their results."""
    return _run([sys.executable, *_TOGETHER, "-m", _MODULE, "-", "-", "begin", *settings])


def run_until_killed(checkpoint: Path, step: int, *settings: str) -> int:
    """Kill a process once it has trained a step, at once and for good; its exit status."""
    command = [sys.executable, "-m", _MODULE, str(checkpoint), "-", "begin", *settings]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        for line in running.stdout:
            if line.strip() == str(step):
                running.kill()
                break
    return running.returncode


def _run(command: list[str]) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=_LIMIT_SECONDS)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stderr
