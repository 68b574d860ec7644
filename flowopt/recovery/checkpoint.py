"""A checkpoint: one safetensors file that is either the old one or the new one, whole.

It is written beside its place, brought to the disk, and renamed. Numbers and words stand as JSON in its header; nothing
in it can run anything when it is read.
"""

import json
import os
import sys
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
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
        facts = json.loads(header[_KEY])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise MalformedModel(
            f"{path} is no checkpoint of a recovery",
            why=f"{type(error).__name__}: {error}",
            hint="give the file that an earlier run wrote, or begin anew without resuming",
        ) from error
    if facts.pop("version", None) != _VERSION:
        raise MalformedModel(f"{path} was written by another version of flowopt", hint="begin anew without resuming")
    return Checkpoint(tensors, facts)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
