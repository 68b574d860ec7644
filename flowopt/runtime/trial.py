"""What is tried with an artifact of an unknown author in a process of its own, before this one opens it."""

import contextlib
import dataclasses
from pathlib import Path

import torch

from flowopt.errors import UserError
from flowopt.formats.limits import Limits
from flowopt.runtime.artifact import Artifact
from flowopt.runtime.layout import ONNX_MODEL, referenced_weights
from flowopt.sandbox.isolated import run_isolated

_TRIAL = "flowopt.runtime.trial:try_artifact"
_BLOCK_BYTES = 512


def require_harmless(folder: Path, limits: Limits) -> None:
    """Open an ONNX artifact and run it once, in a process with limits. A torch artifact is tried when it is opened.

    Raises:
        FlowoptError: as ``Artifact.open``.
        MalformedModel: it crashes the process, or needs more than the limits.
    """
    model = folder / ONNX_MODEL
    if model.is_file():
        # Only what the model can read: a folder may hold other files, of any size.
        names = [ONNX_MODEL, *referenced_weights(model)]
        size = sum(_bytes_on_disk(folder / name) for name in names if (folder / name).is_file())
        arguments = {"folder": str(folder.absolute()), "limits": dataclasses.asdict(limits)}
        run_isolated(_TRIAL, arguments, limits=limits, extra_memory=2 * size)


def _bytes_on_disk(file: Path) -> int:
    """Its size, or less where it has holes: they need no memory, and a small file can have many gigabytes of them."""
    status = file.stat()
    return min(status.st_size, getattr(status, "st_blocks", status.st_size) * _BLOCK_BYTES)


def try_artifact(folder: str, limits: dict[str, int]) -> None:
    """Open an artifact and run it once, on zeros of the smallest sizes. Named to ``flowopt.sandbox``.

    Raises:
        FlowoptError: as ``Artifact.open``.
    """
    artifact = Artifact.open(folder, provider="cpu", limits=Limits(**limits), huge_pages=False)
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
