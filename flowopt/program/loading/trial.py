"""What is tried with an untrusted file in a process of its own, before this one reads it.

Each function here is named to ``flowopt.sandbox``, and takes and returns JSON values.
"""

import contextlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowopt.formats.limits import Limits
from flowopt.ir.metadata import recorded_tensor
from flowopt.ir.quiet import quiet
from flowopt.program.from_exported import program_from_exported
from flowopt.program.loading.archive import with_reader
from flowopt.program.program import Program, Provenance


def try_archive(path: str, limits: dict[str, int]) -> str:
    """Read, rebuild, decompose and run an archive once; returns the digest of what was read.

    Raises:
        FlowoptError: as ``load_archive``.
    """
    loaded = with_reader(Path(path), Path(path).name, Limits(**limits))
    with quiet():
        decomposed = loaded.exported.run_decompositions({})
    run_once(program_from_exported(decomposed, {}, Provenance("", "")))
    return loaded.sha256


def try_weights(path: str) -> list[str]:
    """Read a state dictionary with torch's restricted unpickler; returns the type's name and its first keys.

    Raises:
        pickle.UnpicklingError: it holds more than tensors and plain values.
    """
    found: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    return [type(found).__name__]


def run_once(program: Program) -> None:
    """Run a program on zeros of the captured sizes. What it raises is the model's own affair: only a crash counts."""
    sizes = {d.name: d.traced for d in program.dims}
    inputs: dict[str, Tensor] = {}
    for one in program.inputs:
        value = recorded_tensor(program.node(one.name))
        assert value is not None
        inputs[one.name] = torch.zeros(program.concrete_shape(value, sizes), dtype=one.dtype)
    with contextlib.suppress(IndexError, ValueError, AssertionError), torch.no_grad():
        program.run_named(inputs)


def _is_zip(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"PK"
