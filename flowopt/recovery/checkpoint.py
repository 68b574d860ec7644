"""A checkpoint: one safetensors file that is either the old one or the new one, whole.

It is written beside its place, brought to the disk, and renamed. Numbers and words stand as JSON in its header; nothing
in it can run anything when it is read.
"""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from flowopt.errors import CannotWrite, MalformedModel

_KEY = "flowopt_recovery"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Tensors by name, and what JSON can hold."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Replace what stands at ``path``; its folder is made where it is missing.

    Raises:
        CannotWrite: the operating system refuses.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    # Every tensor with memory of its own: the format refuses those that share.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in checkpoint.tensors.items()}
    header = {_KEY: json.dumps({"version": _VERSION, **checkpoint.facts})}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file(tensors, temporary, metadata=header)
            _sync(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        if sys.platform != "win32":
            _sync(path.parent)
    except (OSError, SafetensorError) as error:
        raise CannotWrite(f"cannot write the checkpoint {path}: {error}", hint="choose another place for it") from error


def read_checkpoint(path: Path) -> Checkpoint:
    """What ``write_checkpoint`` wrote.

    Raises:
        MalformedModel: the file is something else, or damaged.
    """
    return _read(path, with_tensors=True)


def read_facts(path: Path) -> dict[str, Any]:
    """The facts of a checkpoint, without its tensors.

    Raises:
        MalformedModel: as ``read_checkpoint``.
    """
    return _read(path, with_tensors=False).facts


@contextlib.contextmanager
def understood(path: Path) -> Iterator[None]:
    """Within it, what a checkpoint holds is made use of: facts and tensors that do not fit are told as what they are.

    Raises:
        MalformedModel: something lacks, or is of another kind than what was written.
    """
    try:
        yield
    # What is missing or of another kind shows wherever it is used; torch tells of it by a RuntimeError.
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise _no_checkpoint(path, error) from error


def _read(path: Path, *, with_tensors: bool) -> Checkpoint:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            names = list(file.keys()) if with_tensors else []
            tensors = {name: file.get_tensor(name) for name in names}
        facts = json.loads(header[_KEY])
    except (SafetensorError, OSError, KeyError, ValueError, RecursionError) as error:
        raise _no_checkpoint(path, error) from error
    if not isinstance(facts, dict):
        raise _no_checkpoint(path, TypeError(f"its facts are no names and values but {type(facts).__name__}"))
    if facts.pop("version", None) != _VERSION:
        raise MalformedModel(f"{path} was written by another version of flowopt", hint="begin anew without resuming")
    return Checkpoint(tensors, facts)


def _no_checkpoint(path: Path, error: Exception) -> MalformedModel:
    return MalformedModel(
        f"{path} is no checkpoint of a recovery",
        why=f"{type(error).__name__}: {error}",
        hint="give the file that an earlier run wrote, or begin anew without resuming",
    )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
