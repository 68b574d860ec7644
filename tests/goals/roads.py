"""The roads by which a file becomes a result: eleven kinds of files, and only what the messages print to go by.

Weights and modules end in an artifact; what flowopt does not take is called what it is, and the way on is named.
"""

import importlib.util
import re
import shlex
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import safetensors.torch
import torch
import typer
from onnx import TensorProto, helper
from torch import nn

import flowopt
from flowopt.cli.main import app
from tests.cli.command import Ran, python
from tests.goals.row import Measured, Row, counted, problem_of
from tests.hostile.valid_files import lfs_pointer
from tests.zoo.randomise import randomise

# What people type, whatever the file is.
NAME = "model.pt"
MOST_ROUNDS = 4

_MY_NET = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv1d(3, 8, kernel_size=2)
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, signal):
        return self.head(self.norm(self.stem(signal)).relu().mean(2))
"""
# What the message about weights asks for.
_MY_MODEL = """
import torch
from my_net import Net


def factory():
    return Net().eval(), (torch.randn(1, 3, 64),)
"""


@dataclass(frozen=True, slots=True)
class Road:
    """A kind of file: its usual suffix, the code with which it ends, and what its first line says (if refused)."""

    suffix: str
    make: Callable[[nn.Module, Path], None]
    code: int = 0
    words: str = ""


def _archive(net: nn.Module, path: Path) -> None:
    exported = torch.export.export(net, (torch.randn(1, 3, 64),))
    torch.export.save(exported, path.with_suffix(".pt2"))
    path.with_suffix(".pt2").rename(path)


def _script(net: nn.Module, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(net, torch.ones(1, 3, 64)), path)


def _compiled(_: nn.Module, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for member in ("model/data/aotinductor/model/c1.so", "model/archive_format"):
            archive.writestr(member, b"x" * 40)


def _onnx(_: nn.Module, path: Path) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:])
    onnx.save(helper.make_model(graph, producer_name="pytorch"), path)


def _truncated(net: nn.Module, path: Path) -> None:
    _archive(net, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])


def _bytes(content: bytes) -> Callable[[nn.Module, Path], None]:
    def make(_: nn.Module, path: Path) -> None:
        path.write_bytes(content)

    return make


ROADS = {
    "archive": Road(".pt2", _archive),
    "state dict": Road(".pth", lambda net, path: torch.save(net.state_dict(), path)),
    "pickled module": Road(".pkl", lambda net, path: torch.save(net, path)),
    "safetensors": Road(".safetensors", lambda net, path: safetensors.torch.save_file(net.state_dict(), path)),
    "TorchScript": Road(".ts", _script, 77, "TorchScript"),
    "AOTInductor": Road(".pt2", _compiled, 77, "AOTInductor"),
    "ONNX": Road(".onnx", _onnx, 2, "ONNX model"),
    "LFS pointer": Road(".safetensors", _bytes(lfs_pointer(3_145_728)), 65, "Git LFS pointer"),
    "web page": Road(
        ".html", _bytes(b"<!DOCTYPE html><html><head><title>Log in</title></head></html>"), 65, "HTML page"
    ),
    "empty": Road(".pt2", _bytes(b""), 65, "is empty"),
    "truncated": Road(".pt2", _truncated, 65, "is cut off"),
}
TAKEN = tuple(name for name, road in ROADS.items() if road.code == 0)
REFUSED = tuple(name for name, road in ROADS.items() if road.code)


def prepared(folder: Path, kind: str, file: str) -> nn.Module:
    """A folder with the file and the user's own code; returns the model whose weights are in the file."""
    (folder / "my_net.py").write_text(_MY_NET)
    (folder / "my_model.py").write_text(_MY_MODEL)
    with _imported(folder / "my_net.py") as my_net:
        net: nn.Module = my_net.Net().eval()
        randomise(net, seed=7)
        ROADS[kind].make(net, folder / file)
    return net


@contextmanager
def _imported(path: Path) -> Iterator[Any]:
    """A module under its own name while a pickle refers to it."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules[path.stem]


def fresh(folder: Path, *words: str) -> Ran:
    """``flowopt`` as it is installed: its process does not search the current folder by itself."""
    return python("-P", "-m", "flowopt.cli.main", *words, folder=folder)


def tried(message: str) -> str:
    """The command that a message prints to be pasted: the first line after ``try`` that is one; else nothing."""
    _, _, tries = message.partition("\n  try   ")
    lines = (line.strip() for line in tries.splitlines())
    return next((line for line in lines if line.startswith("flowopt ")), "")


def follow(folder: Path, file: str) -> tuple[str, Ran]:
    """Run ``optimize``, then whatever it says to try, until it ends well: the last command and how it ended."""
    command = f"flowopt optimize {file} --target cpu -o out"
    for _ in range(MOST_ROUNDS):
        ran = fresh(folder, *shlex.split(command)[1:])
        assert "Traceback" not in ran.err, ran.err
        if ran.code == 0:
            break
        following = tried(ran.err)
        assert following, f"no command to try: {ran.err}"
        assert following != command, f"told to try the same again: {ran.err}"
        command = following
    return command, ran


def check_taken(folder: Path, kind: str, file: str) -> str:
    """By the printed commands alone the file becomes an artifact that computes what its model computes; the last."""
    net = prepared(folder, kind, file)
    command, ran = follow(folder, file)
    assert ran.code == 0, ran.err
    assert ran.out.startswith("verified: 1 rewrite applied"), ran.out
    signal = torch.randn(1, 3, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        # Many times the rounding of 24 products, far below what other weights would give.
        torch.testing.assert_close(flowopt.Artifact.open(folder / "out").run(signal), net(signal), rtol=1e-4, atol=1e-4)
    return command


def check_verifies(folder: Path, file: str, command: str) -> None:
    """``flowopt verify`` agrees, with the options of the command that made the artifact."""
    options = shlex.split(command.partition(" --target cpu -o out")[2])
    verified = fresh(folder, "verify", file, "out", *options)
    assert verified.code == 0, verified.err


def check_refused(ran: Ran, kind: str, file: str) -> None:
    """The first line says what the file is, a later one what to try, and every option in it exists."""
    first = ran.err.partition("\n")[0]
    assert ran.code == ROADS[kind].code, ran.err
    assert first.endswith(f"(exit {ran.code})") and file in first and ROADS[kind].words in first, first
    assert "\n  try   " in ran.err, ran.err
    assert "Traceback" not in ran.err, ran.err
    assert max(map(len, ran.err.splitlines())) <= 200, ran.err
    for command, options in commands(ran.err):
        assert options <= known_options(command), f"{command} has no {options - known_options(command)}"


def commands(message: str) -> list[tuple[str, set[str]]]:
    """Every command that a message names, with its options."""
    found = re.findall(r"\bflowopt (optimize|explain|verify|passes)\b(.*)", message)
    return [(command, set(re.findall(r"(?<= )--[a-z-]+", rest))) for command, rest in found]


def known_options(command: str) -> set[str]:
    group: Any = typer.main.get_command(app)
    return {text for parameter in group.commands[command].params for text in parameter.opts}


def _measure() -> Measured:
    good, short = counted({kind: problem_of(partial(_check, kind)) for kind in ROADS})
    return Measured(f"{good} of {len(ROADS)}", good == len(ROADS) == 11, short)


def _check(kind: str) -> None:
    for file in (NAME, f"model{ROADS[kind].suffix}"):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if kind in TAKEN:
                check_verifies(folder, file, check_taken(folder, kind, file))
            else:
                prepared(folder, kind, file)
                check_refused(fresh(folder, "optimize", file, "--target", "cpu", "-o", "out"), kind, file)


ROWS = (Row("load.roads", "11 of 11", _measure, is_long=True),)
