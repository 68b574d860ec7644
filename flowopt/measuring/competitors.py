"""Competitors: what each makes out of the reference, and which package it needs.

Each is made in a child process of its own, by ``python -m flowopt.measuring.competitors NAME SOURCE TARGET``: the
tools are other people's native code, and one that crashes is a cell without a figure, not the end of a bench.
"""

import contextlib
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flowopt.errors import MissingDependency, UserError
from flowopt.measuring.child import child_command, child_environment, reason_of
from flowopt.measuring.contender import Contender, Kind
from flowopt.sandbox.process import run_process

_SECONDS = 1800
_OPSET = 23


@dataclass(frozen=True, slots=True)
class Competitor:
    """One competitor.

    Attributes:
        kind: which runner runs it.
        source: what it starts from: the reference, or torch's export of it.
        make: writes the file that runs, from the source; None: the source itself runs.
        package: that it needs beside flowopt's own dependencies, as it is imported.
        install: the same, as pip knows it.
    """

    kind: Kind
    source: Literal["reference", "export"]
    make: Callable[[str, Path], None] | None = None
    package: str | None = None
    install: str = ""


def _export(source: str, target: Path) -> None:
    _exported(source, target, None)


def _export_newest(source: str, target: Path) -> None:
    _exported(source, target, _OPSET)


def _exported(source: str, target: Path, opset: int | None) -> None:
    import torch

    from flowopt.ir.quiet import quiet
    from flowopt.measuring.reference import exported_reference

    with quiet(), torch.no_grad():
        program = torch.onnx.export(exported_reference(source), dynamo=True, verbose=False, opset_version=opset)
    assert program is not None, "with dynamo=True there is a program"
    program.save(target, external_data=True)


def _transformers_optimizer(source: str, target: Path) -> None:
    from onnxruntime.transformers.optimizer import optimize_model

    # Heads and width are found in the graph where they are 0.
    model = optimize_model(source, model_type="bert", num_heads=0, hidden_size=0, use_gpu=False)
    model.save_model_to_file(str(target), use_external_data_format=True)


def _onnxslim(source: str, target: Path) -> None:
    import onnxslim

    onnxslim.slim(source, str(target), save_as_external_data=True)


def _onnxsim(source: str, target: Path) -> None:
    import onnx
    import onnxsim

    simplified, is_checked = onnxsim.simplify(source)
    if not is_checked:
        raise ValueError("onnxsim says that its result differs from the original")
    onnx.save_model(simplified, str(target), save_as_external_data=True, location=target.name + ".data")


def _onnxscript(source: str, target: Path) -> None:
    import onnx_ir
    from onnxscript import optimizer

    model = onnx_ir.load(source)
    optimizer.optimize(model)
    onnx_ir.save(model, target, external_data=target.name + ".data")


COMPETITORS: dict[str, Competitor] = {
    "eager": Competitor("eager", "reference"),
    "compile": Competitor("compile", "reference"),
    "ort": Competitor("onnxruntime", "reference", _export, "onnxruntime", "onnxruntime"),
    f"ort-opset-{_OPSET}": Competitor("onnxruntime", "reference", _export_newest, "onnxruntime", "onnxruntime"),
    "ort-transformers": Competitor(
        "onnxruntime", "export", _transformers_optimizer, "onnxruntime.transformers", "onnxruntime sympy"
    ),
    "onnxslim": Competitor("onnxruntime", "export", _onnxslim, "onnxslim", "onnxslim"),
    "onnxsim": Competitor("onnxruntime", "export", _onnxsim, "onnxsim", "onnxsim"),
    "onnxscript": Competitor("onnxruntime", "export", _onnxscript, "onnxruntime", "onnxruntime"),
    "openvino": Competitor("openvino", "export", None, "openvino", "openvino"),
}
# ONNX Runtime on torch's own export, at its default opset and at the newest that is widely read: the faster counts.
PLAIN = ("ort", f"ort-opset-{_OPSET}")


def require_known(names: tuple[str, ...]) -> None:
    """Names of competitors, with their packages.

    Raises:
        UserError: an unknown one.
        MissingDependency: a package is not installed.
    """
    for name in names:
        if name not in COMPETITORS:
            raise UserError(f"there is no competitor {name!r}", hint=f"--vs takes {', '.join(COMPETITORS)}")
        package = COMPETITORS[name].package
        if package is not None and not _is_installed(package):
            install = COMPETITORS[name].install
            raise MissingDependency(f"--vs {name} needs {package}", hint=f"pip install {install}, or leave it out")


def prepared(names: tuple[str, ...], reference: str, folder: Path) -> tuple[list[Contender], dict[str, str]]:
    """Contenders out of a reference, and for each competitor that cannot make one, why.

    Args:
        names: of competitors.
        reference: a factory, or the path of an archive written by flowopt.
        folder: for what they make; what lies there already is used again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    failures: dict[str, str] = {}
    found: list[Contender] = []
    export = _Export(reference, folder)
    for name in names:
        one = COMPETITORS[name]
        try:
            source = reference if one.source == "reference" else export.path()
            if name == PLAIN[0]:
                path = export.path()
            else:
                path = source if one.make is None else str(_made(name, source, folder))
        except _UnmadeError as error:
            failures[name] = str(error)
            continue
        found.append(Contender(name, one.kind, path, is_plain=name in PLAIN))
    return found, failures


class _UnmadeError(Exception):
    """A tool failed on this model."""


class _Export:
    """Torch's export, from which several start: made once, and where it fails, tried once."""

    def __init__(self, reference: str, folder: Path) -> None:
        self._reference, self._folder = reference, folder
        self._error: _UnmadeError | None = None

    def path(self) -> str:
        if self._error is not None:
            raise self._error
        try:
            return str(_made(PLAIN[0], self._reference, self._folder))
        except _UnmadeError as error:
            self._error = _UnmadeError(f"torch.onnx.export: {error}")
            raise self._error from error


def _made(name: str, source: str, folder: Path) -> Path:
    target = folder / name / "model.onnx"
    if target.exists():
        return target
    # Aside, and renamed when it is whole: what an interrupted run leaves is never taken for a model.
    aside = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=folder))
    try:
        ended = run_process(
            child_command("flowopt.measuring.competitors", [name, source, str(aside / target.name)]),
            b"",
            environment=child_environment(),
            folder=os.getcwd(),
            seconds=_SECONDS,
        )
        if ended.status != 0:
            raise _UnmadeError(reason_of(ended.status, ended.stderr, _SECONDS))
        if not (aside / target.name).exists():
            raise _UnmadeError(f"{name} wrote no file")
        shutil.rmtree(target.parent, ignore_errors=True)
        aside.rename(target.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


def _is_installed(package: str) -> bool:
    with contextlib.suppress(ModuleNotFoundError):
        return importlib.util.find_spec(package) is not None
    return False


if __name__ == "__main__":
    maker = COMPETITORS[sys.argv[1]].make
    assert maker is not None, "only what is made is made here"
    maker(sys.argv[2], Path(sys.argv[3]))
