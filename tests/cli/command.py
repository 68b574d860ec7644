"""Run a command line in this process, or in a fresh one."""

import contextlib
import io
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from flowopt.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
FACTORIES = "tests.cli.models"


@dataclass(frozen=True, slots=True)
class Ran:
    """Exit code and what was written."""

    code: int
    out: str
    err: str

    @property
    def first(self) -> str:
        return self.out.splitlines()[0]

    @property
    def last(self) -> str:
        return self.out.splitlines()[-1]


def flowopt(*arguments: object) -> Ran:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return Ran(code, out.getvalue(), err.getvalue())


def refused(ran: Ran, code: int = 2) -> str:
    """The message, which fits a screen and says what to write."""
    assert (ran.code, ran.out) == (code, ""), (ran.code, ran.out, ran.err)
    lines = ran.err[ran.err.index("flowopt: ") :].splitlines()
    assert lines[0].endswith(f"(exit {code})")
    assert any(line.startswith("  try   ") for line in lines)
    assert len(lines) <= 20
    return "\n".join(lines)


def python(*arguments: str, folder: Path) -> Ran:
    """A fresh interpreter in ``folder``, which is not the repository's."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def model(name: str) -> str:
    return f"{FACTORIES}:{name}"
