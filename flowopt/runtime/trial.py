"""What is tried with an artifact of an unknown author in a process of its own, before this one opens it."""

import contextlib
from pathlib import Path

import torch

from flowopt.errors import UserError
from flowopt.formats.limits import Limits
from flowopt.runtime.artifact import Artifact
from flowopt.runtime.layout import ONNX_MODEL
from flowopt.sandbox.isolated import run_isolated

_TRIAL = "flowopt.runtime.trial:try_artifact"


def require_harmless(folder: Path, limits: Limits) -> None:
    """Open an ONNX artifact and run it once, in a process with limits. A torch artifact is tried when it is opened.

    Raises:
        FlowoptError: as ``Artifact.open``.
        MalformedModel: it crashes the process, or needs more than the limits.
    """
    if (folder / ONNX_MODEL).is_file():
        size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
        run_isolated(_TRIAL, {"folder": str(folder.absolute())}, limits=limits, extra_memory=2 * size)


def try_artifact(folder: str) -> None:
    """Open an artifact and run it once, on zeros of the smallest sizes. Named to ``flowopt.sandbox``.

    Raises:
        FlowoptError: as ``Artifact.open``.
    """
    artifact = Artifact.open(folder, provider="cpu")
    smallest = {name: low for name, (low, _) in artifact.dims.items()}
    inputs = {
        one.name: torch.zeros([_size(size, smallest) for size in one.shape], dtype=one.dtype)
        for one in artifact.inputs
        if one.state is None
    }
    # Numbers that the model refuses are its own affair; what counts is that it opens, and that nothing crashes.
    with contextlib.suppress(UserError, IndexError, ValueError):
        artifact.run_named(inputs)


def _size(size: int | str, smallest: dict[str, int]) -> int:
    return size if isinstance(size, int) else smallest.get(size, 1)
