"""What a library that ``--target tvm`` made says of itself, read out of its bytes: nothing of it runs.

The compiler keeps the text of a function that returns a constant as it is, in one piece. So a reader knows what the
library takes, which weights belong to it and which processor it needs before it is loaded.
"""

import json
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np

from flowopt.errors import MalformedModel
from flowopt.runtime.layout import WEIGHTS_NAME

_SCHEMA: Final = 1
_START: Final = b'{"flowopt.compiled": '
# Of a model with ten thousand weights.
_MOST_BYTES: Final = 1 << 24
_AGAIN: Final = "build the artifact again"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies in the file of weights, and what it is."""

    offset: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Of its elements."""
        return prod(self.shape) * numpy_dtype(self.dtype).itemsize


def numpy_dtype(name: str) -> np.dtype:
    """The dtype of a name as torch has it; those that numpy lacks come from ml_dtypes."""
    if name.startswith(("bfloat16", "float8")):
        import ml_dtypes

        found: np.dtype = np.dtype(getattr(ml_dtypes, name))
        return found
    return np.dtype(name)


@dataclass(frozen=True, slots=True)
class LibraryMetadata:
    """What a library needs.

    Attributes:
        version: of the flowopt that wrote it.
        interface: as ``report.json`` has it.
        device: ``cpu`` or ``cuda``.
        arch: what it was compiled for: the processor as LLVM names it, or the CUDA architecture.
        features: instruction sets of the host's processor, as LLVM names them, that it may use.
        weights: name of the file beside it; None: it needs none.
        tensors: in that file: first the parameters of ``main``, then stored state.
        parameters: how many of the tensors are parameters.
        state: input name to the index of its stored value.
        fresh: indices of the outputs that a kernel makes anew in each call.
    """

    version: str
    interface: Mapping[str, Any]
    device: str
    arch: str
    features: tuple[str, ...]
    weights: str | None
    tensors: tuple[StoredTensor, ...]
    parameters: int
    state: Mapping[str, int]
    fresh: frozenset[int]

    def text(self) -> str:
        """As ``read_metadata`` finds it."""
        return json.dumps(
            {
                "flowopt.compiled": _SCHEMA,
                "flowopt.version": self.version,
                "interface": self.interface,
                "device": self.device,
                "arch": self.arch,
                "features": list(self.features),
                "weights": self.weights,
                "tensors": [[one.offset, one.dtype, list(one.shape)] for one in self.tensors],
                "parameters": self.parameters,
                "state": self.state,
                "fresh": sorted(self.fresh),
            }
        )


def read_metadata(library: Path) -> LibraryMetadata:
    """What a library says of itself.

    Raises:
        MalformedModel: flowopt did not write it, or another version of it did.
    """
    text = _stored_text(library)
    if text is None:
        raise MalformedModel(f"{library} does not say what it is", why="flowopt did not write it", hint=_AGAIN)
    try:
        found, _ = json.JSONDecoder().raw_decode(text)
        if found["flowopt.compiled"] != _SCHEMA:
            raise MalformedModel(
                f"{library} was written by flowopt {found['flowopt.version']} in another form", hint=_AGAIN
            )
        metadata = LibraryMetadata(
            version=str(found["flowopt.version"]),
            interface=dict(found["interface"]),
            device=str(found["device"]),
            arch=str(found["arch"]),
            features=tuple(map(str, found["features"])),
            weights=None if found["weights"] is None else str(found["weights"]),
            tensors=tuple(StoredTensor(int(at), str(dtype), tuple(map(int, sh))) for at, dtype, sh in found["tensors"]),
            parameters=int(found["parameters"]),
            state={str(name): int(at) for name, at in found["state"].items()},
            fresh=frozenset(map(int, found["fresh"])),
        )
        stored = range(len(metadata.tensors))
        if metadata.parameters not in range(len(stored) + 1) or any(at not in stored for at in metadata.state.values()):
            raise ValueError("a tensor that is not there")
        if any(size < 0 for one in metadata.tensors for size in (one.offset, *one.shape)):
            raise ValueError("a negative size")
    # The parser recurses: RecursionError where it is nested deeper than the stack.
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise MalformedModel(f"what {library} says of itself is damaged", hint=_AGAIN) from error
    if metadata.weights is not None and not WEIGHTS_NAME.fullmatch(metadata.weights):
        raise MalformedModel(f"{library} names weights {metadata.weights!r}", why="flowopt writes no such name")
    return metadata


def _stored_text(library: Path) -> str | None:
    if library.stat().st_size == 0:
        return None
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = data.find(_START)
        return None if at < 0 else data[at : at + _MOST_BYTES].decode("utf-8", errors="replace")
