"""An ONNX file that reads nothing but its own folder and needs nothing but ONNX Runtime: checked before either sees it.

No reader refuses all of it. ONNX's checker accepts lengths beyond the file, ``onnx.load`` follows paths in sparse
tensors, ONNX Runtime reads hard links, and all of them take a file of no bytes for a model. So the check is our own:
the bytes are walked (``model``), every path is opened step by step (``opened``), and readers are given what was opened.

Sources: onnx/docs/ExternalData.md, onnxruntime.ai/docs/execution-providers/EP-Context-Design.html, and the advisories
CVE-2022-25882, CVE-2024-27318, CVE-2026-27489, CVE-2026-34446, CVE-2026-34447.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flowopt.errors import FlowoptError, MalformedModel, Untrusted
from flowopt.formats.limits import DEFAULT_LIMITS, GIBIBYTE, Limits
from flowopt.formats.onnx.model import OnnxModel, read_model
from flowopt.formats.onnx.opened import OpenedFile, open_beneath, open_model
from flowopt.formats.onnx.tensor import TensorField

# Protobuf's own limit.
_MOST_BYTES: Final = 2 * GIBIBYTE
# Domains whose operators are part of ONNX or compiled into ONNX Runtime.
SERVED_DOMAINS: Final = frozenset(
    {
        *("", "ai.onnx", "ai.onnx.ml", "ai.onnx.preview", "ai.onnx.preview.training"),
        *("com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc"),
    }
)
# Operators of served domains that are given programs: a compiled model from any file, Python by its name, a vendor's.
PROGRAM_OPERATORS: Final = frozenset(
    {"EPContext", "Snpe", "PyOp", "PythonOp", "PythonOpGrad", "TritonOp", "ATen", "ExternalOp", "StVM", "TVMOp"}
)
_KNOWN_KEYS: Final = frozenset({"location", "offset", "length", "checksum"})
# Printable, and without what means something to a shell, to Windows, or to ONNX Runtime: "*/_ORT_MEM_ADDR_/*" makes it
# read the offset as an address in its own memory.
_UNSAFE: Final = re.compile(r'[\\:*?"<>|]')
_INSIDE: Final = {"attribute": "in an attribute", "sparse": "in a sparse tensor"}
_NUMBER: Final = re.compile(r"[0-9]{1,18}", re.ASCII)
_CHUNK_BYTES: Final = 1 << 20
_SELF_CONTAINED: Final = "ask whoever made it for one whose weights lie beside the model, as the exporter wrote them"


@dataclass(frozen=True, slots=True)
class CheckedOnnx:
    """A checked file, still open: read ``data`` and ``external``, not the paths, which could lead elsewhere by now.

    Attributes:
        path: where it was opened.
        sha256: of the model file.
        model: its tensors, operators and domains.
        opened: the model file itself.
        external: its weight files by the location that the model gives.
    """

    path: Path
    sha256: str
    model: OnnxModel
    opened: OpenedFile
    external: Mapping[str, OpenedFile]

    def content(self) -> bytes:
        """The bytes of the model file.

        Raises:
            MalformedModel: they were changed in place after the check.
        """
        content = bytes(self.opened.data or b"")
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise MalformedModel(f"{self.path.name} was changed since it was checked", hint="open it again")
        return content

    def close(self) -> None:
        """Give all mappings back."""
        for file in (self.opened, *self.external.values()):
            file.close()


def checked_onnx(
    path: Path, limits: Limits = DEFAULT_LIMITS, *, own_names: re.Pattern[str] | None = None
) -> CheckedOnnx:
    """Open an ONNX file and everything that it would read.

    Args:
        path: the file.
        limits: nodes and depth.
        own_names: names of the only files that it may read, all in its own folder; whatever else it reads is then no
            question of trust, and refused as malformed. None: files in the folder and below.

    Raises:
        MalformedModel: no ONNX file, a damaged one, one that contradicts itself, or a file that is missing or short.
        Untrusted: it reads outside its folder, or needs a library or a program.
    """
    refusal: type[FlowoptError] = Untrusted if own_names is None else MalformedModel
    opened = open_model(path)
    external: dict[str, OpenedFile] = {}
    try:
        _require_onnx(path, opened)
        assert opened.data is not None
        try:
            model = read_model(opened.data, limits)
        except MalformedModel as error:
            raise MalformedModel(
                f"{path.name} is no sound ONNX model: {error.message}", why=error.why, hint=error.hint
            ) from error
        _require_served(path, model)
        for tensor in model.tensors:
            if tensor.external is not None:
                _require_contained(path, tensor, tensor.external, external, own_names, refusal)
        if any(file.identity == opened.identity for file in external.values()):
            raise MalformedModel(f"{path.name} reads itself as weights", hint=_SELF_CONTAINED)
        digest = hashlib.sha256()
        for at in range(0, opened.size, _CHUNK_BYTES):
            digest.update(opened.data[at : at + _CHUNK_BYTES])
        return CheckedOnnx(path, digest.hexdigest(), model, opened, external)
    except BaseException:
        for file in (opened, *external.values()):
            file.close()
        raise


def _require_onnx(path: Path, opened: OpenedFile) -> None:
    """Name what is often taken for an ONNX file; the walk refuses the rest."""
    if opened.data is None:
        raise MalformedModel(f"{path.name} is empty", why="it has 0 bytes", hint="download or copy it again")
    if opened.size > _MOST_BYTES:
        raise MalformedModel(
            f"{path.name} has {opened.size:,} bytes", why="protobuf ends at 2 GiB", hint="export it with external data"
        )
    head = opened.data[:64]
    # ONNX Runtime goes by these four bytes, which a protobuf can have too.
    if head[4:8] == b"ORTM":
        raise MalformedModel(
            f"{path.name} is in ONNX Runtime's own format (.ort)",
            why="it is made for one version and one machine, and its graph is not ONNX",
            hint="give the .onnx file that it was converted from",
        )
    if head.startswith(b"version https://git-lfs"):
        raise MalformedModel(f"{path.name} is a Git LFS pointer, not the file", hint="git lfs pull")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise MalformedModel(f"{path.name} is a web page", hint="download the file itself, not the page about it")


def _require_served(path: Path, model: OnnxModel) -> None:
    foreign = sorted({f"{d}::{name}" for d, name in model.operators - model.functions if d not in SERVED_DOMAINS})
    if foreign:
        raise Untrusted(
            f"{path.name} needs operators that neither it nor ONNX Runtime has: {_shown(foreign)}",
            why="they come from a library of custom operators, which is a program; flowopt loads none",
            hint="export the model with standard operators, or with the functions that define these",
        )
    programs = sorted({f"{d or 'ai.onnx'}::{name}" for d, name in model.operators if name in PROGRAM_OPERATORS})
    if programs:
        raise Untrusted(
            f"{path.name} runs programs: {_shown(programs)}",
            why="such an operator runs what a vendor compiled, from any file that it names, or Python",
            hint="give the ONNX file that it was compiled from",
        )


def _require_contained(
    path: Path,
    tensor: TensorField,
    entries: Mapping[str, str],
    external: dict[str, OpenedFile],
    own_names: re.Pattern[str] | None,
    refusal: type[FlowoptError],
) -> None:
    location, where = entries.get("location", ""), f"tensor {tensor.name[:100]!r}"
    shown = repr(location[:200])
    if own_names is not None and not own_names.fullmatch(location):
        raise refusal(
            f"{path.name} reads {shown} for {where}",
            why="an artifact reads weights.<sha256[:16]>.data in its own folder and nothing else",
            hint="build the artifact again",
        )
    if not _is_plain(location):
        raise refusal(
            f"{path.name} reads {shown} for {where}",
            why="that is no file in its folder; a model could so read any file of this machine",
            hint=_SELF_CONTAINED,
        )
    if tensor.place in _INSIDE:
        raise MalformedModel(
            f"{where}, {_INSIDE[tensor.place]}, lies in the file {shown}",
            why="readers differ in what they do then; ONNX Runtime refuses it",
            hint=_SELF_CONTAINED,
        )
    if unknown := sorted(entries.keys() - _KNOWN_KEYS):
        raise MalformedModel(f"{where} has external data with the unknown keys {_shown(unknown)}", hint=_SELF_CONTAINED)
    start, length = _number(where, entries, "offset", 0), _number(where, entries, "length", tensor.bytes)
    if length != tensor.bytes:
        raise MalformedModel(
            f"{where} has external data of {length:,} bytes; its type and shape need {tensor.bytes:,}",
            hint=_SELF_CONTAINED,
        )
    if location not in external:
        external[location] = open_beneath(path.parent, location, refusal)
    size = external[location].size
    if start + length > size:
        raise MalformedModel(
            f"{location} has {size:,} bytes, the model reads {start + length:,}",
            hint="the file is truncated: copy it, or build the model, again",
        )


def _is_plain(location: str) -> bool:
    parts = location.split("/")
    return (
        location.isprintable() and not _UNSAFE.search(location) and all(part not in ("", ".", "..") for part in parts)
    )


def _number(where: str, entries: Mapping[str, str], key: str, default: int) -> int:
    value = entries.get(key)
    if value is None:
        return default
    if not _NUMBER.fullmatch(value):
        raise MalformedModel(f"{where} has external data with {key}={value[:40]!r}", hint=_SELF_CONTAINED)
    return int(value)


def _shown(names: list[str]) -> str:
    return ", ".join(name[:100] for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
