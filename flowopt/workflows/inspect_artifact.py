"""Inspect an artifact: what its files hold, read by flowopt's own readers; nothing is run."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

from flowopt.errors import FlowoptError, MalformedModel, ModelNotFound
from flowopt.formats.digest import file_sha256
from flowopt.formats.limits import DEFAULT_LIMITS, Limits
from flowopt.formats.onnx.containment import CheckedOnnx, checked_onnx
from flowopt.formats.onnx.header import read_header
from flowopt.formats.onnx.tensor import TensorField
from flowopt.formats.pt2.archive import read_archive
from flowopt.formats.pt2.tensors import StoredTensor
from flowopt.program.interface import Interface
from flowopt.report.inspection import ArtifactInspection, StoredTensors
from flowopt.report.stored import StoredReport, stored_report
from flowopt.runtime.contents import checked_artifact
from flowopt.runtime.interface import described_interface, parsed_interface_text
from flowopt.runtime.layout import INTERFACE_FILE, INTERFACE_KEY, MODEL_FILES, VERSION_KEY, committed
from flowopt.runtime.relax_metadata import read_metadata

_ONNX_DTYPES: Final[Mapping[int, str]] = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    8: "string",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
    14: "complex64",
    15: "complex128",
    16: "bfloat16",
    17: "float8_e4m3fn",
    18: "float8_e4m3fnuz",
    19: "float8_e5m2",
    20: "float8_e5m2fnuz",
    21: "uint4",
    22: "int4",
}
_PREFIXES: Final = ("torch.ops.", "_operator.")
_ELEMENT: Final = "getitem"


def inspect_artifact(path: str | Path, *, limits: Limits = DEFAULT_LIMITS) -> ArtifactInspection:
    """Count what is in an artifact's files, and read what its report says.

    Args:
        path: the folder, or an ONNX file; of a file that flowopt did not write, what can be read of it.
        limits: what reading may cost.

    Raises:
        ModelNotFound: no such folder or file.
        MalformedModel: no artifact, or a damaged one.
        Untrusted: a model that needs a library or runs a program.
    """
    path = Path(path)
    if not path.exists():
        raise ModelNotFound(f"no artifact at {path}")
    folder = path if path.is_dir() else path.parent
    found = committed(folder) if path.is_dir() or path.name in MODEL_FILES else None
    if path.is_dir() and found is None:
        raise MalformedModel(
            f"{path} is not an artifact",
            why=f"it holds neither {' nor '.join(MODEL_FILES)}",
            hint="give the folder that flowopt optimize wrote with -o",
        )
    model = found.model if found is not None and path.is_dir() else path
    # Of a file with any name and no report, nothing says that it is an artifact's.
    is_own = found is not None and found.model == model and (path.is_dir() or found.report is not None)
    if model.suffix == ".so":
        content = _of_library(model, found.report if found is not None else None)
    else:
        content = _of_archive(model, limits) if model.suffix == ".pt2" else _of_onnx(model, limits, is_own=is_own)
    report, notes = _report(found.report if found is not None and found.sha256 == content.sha256 else None)
    interface, more = _interface(content.interface)
    return ArtifactInspection(
        model=model.name,
        model_sha256=content.sha256,
        files=content.files,
        census=dict(content.census.most_common()),
        stored=content.stored,
        weight_bytes=sum(one.bytes for one in content.stored),
        opsets=content.opsets,
        writer=content.writer,
        interface=interface,
        report=report,
        notes=(*more, *notes),
    )


@dataclass(frozen=True, slots=True)
class _Content:
    sha256: str
    files: Mapping[str, int]
    census: Counter[str]
    stored: tuple[StoredTensors, ...]
    opsets: Mapping[str, int]
    writer: str
    interface: str | None


def _of_onnx(model: Path, limits: Limits, *, is_own: bool) -> _Content:
    checked = checked_artifact(model, limits=limits) if is_own else checked_onnx(model, limits)
    try:
        return _onnx_content(checked)
    finally:
        checked.close()


def _onnx_content(checked: CheckedOnnx) -> _Content:
    assert checked.opened.data is not None, "an empty file is refused"
    header = read_header(checked.opened.data)
    census = {f"{domain}::{name}" if domain else name: n for (domain, name), n in checked.model.census.items()}
    external = {name: file.size for name, file in checked.external.items()}
    version = header.metadata.get(VERSION_KEY) or header.producer_version
    return _Content(
        sha256=checked.sha256,
        files={checked.path.name: checked.opened.size, **external},
        census=Counter(census),
        stored=_counted(
            (_place(t), _ONNX_DTYPES.get(t.data_type, f"type {t.data_type}"), t.dims, t.bytes)
            for t in checked.model.tensors
        ),
        opsets={domain or "ai.onnx": number for domain, number in sorted(checked.model.versions.items())},
        writer=f"{header.producer} {version}".strip(),
        interface=header.metadata.get(INTERFACE_KEY),
    )


def _of_archive(model: Path, limits: Limits) -> _Content:
    from torch._export.serde.serialize import _SERIALIZE_TO_TORCH_DTYPE

    def described(one: StoredTensor) -> tuple[object, str, tuple[int, ...], int]:
        dtype = str(_SERIALIZE_TO_TORCH_DTYPE.get(one.dtype, f"type {one.dtype}")).removeprefix("torch.")
        return one.record, dtype, one.shape, one.record[1]

    with model.open("rb") as file:
        archive = read_archive(file, model.name, limits)
    nodes: list[Mapping[str, Any]] = archive.document["graph_module"]["graph"]["nodes"]
    names = (_operator(str(node["target"])) for node in nodes)
    return _Content(
        sha256=archive.sha256,
        files={model.name: model.stat().st_size},
        census=Counter(name for name in names if name != _ELEMENT),
        stored=_counted(described(one) for one in (*archive.weights, *archive.constants)),
        opsets={},
        writer="",
        interface=archive.extra.get(INTERFACE_FILE),
    )


def _of_library(model: Path, report: Mapping[str, object] | None) -> _Content:
    """What a library says of itself; what it calls, only its report knows. Nothing of it runs."""
    metadata = read_metadata(model)
    files = {model.name: model.stat().st_size}
    weights = model.parent / metadata.weights if metadata.weights is not None else None
    if weights is not None:
        if not weights.is_file():
            raise MalformedModel(f"the weights {weights} are missing", hint="copy the whole folder")
        files[weights.name] = weights.stat().st_size
    called = (report or {}).get("census_lowered", {})
    return _Content(
        sha256=file_sha256(model),
        files=files,
        census=Counter(called) if isinstance(called, dict) else Counter(),
        stored=_counted((at, one.dtype, one.shape, one.bytes) for at, one in enumerate(metadata.tensors)),
        opsets={},
        writer=f"flowopt {metadata.version}, TVM for {metadata.device} ({metadata.arch})",
        interface=json.dumps(metadata.interface),
    )


def _operator(target: str) -> str:
    """``torch.ops.aten.linear.default`` as flowopt's reports have it: ``aten.linear``."""
    for prefix in _PREFIXES:
        target = target.removeprefix(prefix)
    return target.removesuffix(".default")


def _place(tensor: TensorField) -> object:
    """What tells whether two tensors are one: where an external one lies; every other stands for itself."""
    external = tensor.external
    return id(tensor) if external is None else (external.get("location"), external.get("offset", "0"))


def _counted(tensors: Iterable[tuple[object, str, tuple[int, ...], int]]) -> tuple[StoredTensors, ...]:
    """By dtype, largest first, out of place, dtype, shape and bytes; what lies at one place counts once."""
    places: dict[object, tuple[str, tuple[int, ...], int]] = {}
    for place, dtype, shape, size in tensors:
        if place not in places or places[place][2] < size:
            places[place] = (dtype, shape, size)
    totals: dict[str, list[int]] = {}
    for dtype, shape, size in places.values():
        total = totals.setdefault(dtype, [0, 0, 0])
        for at, amount in enumerate((1, prod(shape), size)):
            total[at] += amount
    rows = (StoredTensors(dtype, *counts) for dtype, counts in totals.items())
    return tuple(sorted(rows, key=lambda row: (-row.bytes, row.dtype)))


def _interface(text: str | None) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    if text is None:
        return {}, ("the file does not say what it takes: flowopt did not write it",)
    interface: Interface = parsed_interface_text(text)
    return described_interface(interface), ()


def _report(found: Mapping[str, object] | None) -> tuple[StoredReport | None, tuple[str, ...]]:
    if found is None:
        return None, ("no report.json belongs to this model",)
    try:
        return stored_report(dict(found), what="report.json"), ()
    except FlowoptError as error:
        return None, (f"{error.message}: {error.why}",)
