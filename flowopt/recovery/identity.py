"""What a checkpoint belongs to: it goes on only with the same settings, models and data."""

import dataclasses
import hashlib
from collections.abc import Collection, Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowopt.errors import UserError
from flowopt.ir.text import graph_text
from flowopt.program.program import Program
from flowopt.recovery.data.data import Data
from flowopt.recovery.settings import RecoverySettings
from flowopt.recovery.trainable import Trainable

# Where it ends does not change how it goes.
_FREE = ("time_limit_seconds",)


def identity_of(student: Trainable, teacher: Program, data: Data, settings: RecoverySettings) -> dict[str, Any]:
    """Settings by name, and digests of the models and of the data, as JSON can hold them.

    Of the student the structure counts, because the checkpoint holds its weights; of the teacher the weights, too. Of
    data in files and arrays every sample counts, of streams the first batches.
    """
    leaves = [f"{name}: {type(leaf).__qualname__}" for name, leaf in student.leaves.items()]
    state = [f"{name} {tensor.dtype} {list(tensor.shape)}" for name, tensor in student.state_dict().items()]
    arrays = chain.from_iterable((*_sorted(b.inputs), *_sorted(b.extra)) for b in data.identifying())
    return {
        "settings": _told(settings),
        "student": _digest([graph_text(student.program.graph), *leaves, *state], ()),
        "teacher": _digest([graph_text(teacher.graph)], sorted(teacher.tensors.items())),
        "data": _digest([], arrays),
    }


def require_same(path: Path, written: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with something else than what was begun.

    Raises:
        UserError: it says which settings differ, or which model or data.
    """
    _require_same_settings(path, written["settings"], now["settings"])
    for part, what in (
        ("student", "model, or other swapped norms or linearized attention"),
        ("teacher", "original model"),
        ("data", "data"),
    ):
        if written[part] != now[part]:
            raise UserError(
                f"{path} was written for another {what}" if part != "data" else f"{path} was written with other data",
                hint="resume with what the first run was given, or begin anew with another checkpoint",
            )


def require_same_settings(
    path: Path, written: Mapping[str, Any], settings: RecoverySettings, unknown: Collection[str] = ()
) -> None:
    """As ``require_same``, of the settings alone; nothing is said of those that are ``unknown`` yet.

    Raises:
        UserError: it says which settings differ.
    """
    now = {name: value for name, value in _told(settings).items() if name not in unknown}
    _require_same_settings(path, written["settings"], now)


def _require_same_settings(path: Path, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    changed = [name for name in after if before.get(name) != after[name]]
    if changed:
        raise UserError(
            f"{path} was written with other settings: "
            + ", ".join(f"{name}={before.get(name)!r}, now {after[name]!r}" for name in changed),
            hint="resume with the settings of the first run, or begin anew with another checkpoint",
        )


def _told(settings: RecoverySettings) -> dict[str, Any]:
    """Settings that count, by name, as JSON gives them back."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in dataclasses.asdict(settings).items()
        if name not in _FREE
    }


def _sorted(arrays: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    return sorted(arrays.items())


def _digest(lines: Iterable[str], tensors: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line}\n".encode())
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        # Bytes whatever the dtype: NumPy has no bfloat16.
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return digest.hexdigest()
