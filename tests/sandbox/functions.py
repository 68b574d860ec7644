"""What the tests run in a process of its own."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

from flowopt.errors import MalformedModel, UserError
from flowopt.sandbox.isolated import run_isolated


class PrivateError(UserError):
    """A subclass that only this module knows."""


def echo(**arguments: Any) -> dict[str, Any]:
    return arguments


def refuse() -> NoReturn:
    error = MalformedModel("no", why="because", hint="do this", retry=(("--limit", "nodes=5"), ("--trust", "code")))
    error.add_note("model.onnx: node 3")
    raise error


def refuse_privately() -> NoReturn:
    raise PrivateError("private")


def fail() -> NoReturn:
    raise KeyError("first line\nsecond line")


def leave() -> NoReturn:
    raise SystemExit(0)


def end_at_once() -> NoReturn:
    print("the last words", file=sys.stderr, flush=True)
    os._exit(7)


def unspeakable() -> object:
    return object()


def talkative() -> str:
    return "x" * (65 << 20)


def fill_memory() -> NoReturn:
    kept = []
    while True:
        kept.append(bytearray(1 << 20))


def fill_memory_with_small_things() -> NoReturn:
    kept: tuple[object, ...] = ()
    while True:
        kept = (kept,)


def wrap_a_memory_error() -> None:
    try:
        bytearray(1 << 50)
    except MemoryError as error:
        raise MalformedModel("cannot load it") from error


def raise_text(text: str) -> NoReturn:
    raise RuntimeError(text)


def numpy_array(size_bytes: int) -> int:
    # Imported here, as torch below, so that the other tests start quickly.
    import numpy as np

    return np.empty(size_bytes, dtype=np.uint8).nbytes


def torch_tensor(size_bytes: int) -> int:
    import torch

    return torch.empty(size_bytes, dtype=torch.uint8).nbytes


def loop() -> NoReturn:
    while True:
        pass


def sleep(pid_file: str = "") -> None:
    if pid_file:
        Path(pid_file).write_text(str(os.getpid()))
    time.sleep(1e6)


def run_sleeper(pid_file: str) -> None:
    run_isolated("tests.sandbox.functions:sleep", {"pid_file": pid_file})


def abort() -> NoReturn:
    print("a library says why", file=sys.stderr, flush=True)
    os.abort()


def read_null() -> None:
    ctypes.string_at(0)


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def flood(size_bytes: int) -> str:
    chunk = b"x" * (1 << 20)
    for _ in range(size_bytes >> 20):
        os.write(1, chunk)
        os.write(2, chunk)
    return "done"


def write_file(size_bytes: int) -> int:
    with open("file", "wb") as file:
        while file.tell() < size_bytes:
            file.write(bytearray(1 << 20))
    return size_bytes


def surroundings() -> dict[str, Any]:
    files = sorted(os.listdir(f"/proc/{os.getpid()}/fd"), key=int)
    return {
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "entries": os.listdir(),
        "path": sys.path,
        "modules": sorted(sys.modules),
        "files": [os.readlink(f"/proc/self/fd/{file}") for file in files if os.path.exists(f"/proc/self/fd/{file}")],
        "input": sys.stdin.read(),
    }


def package_files() -> list[str | None]:
    return [sys.modules[name].__file__ for name in ("flowopt", "tests")]


def start_grandchild(pid_file: str = "") -> int:
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1e6)"])
    if pid_file:
        Path(pid_file).write_text(str(grandchild.pid))
        grandchild.wait()
    return grandchild.pid


def many_threads() -> int:
    finished: list[int] = []
    threads = [threading.Thread(target=finished.append, args=(i,)) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(finished)


def connect(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=5):
        return True


def read_text(path: str) -> str:
    return Path(path).read_text()
