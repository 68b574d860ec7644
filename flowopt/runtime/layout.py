"""What lies in an artifact folder, under which names, and which of two models there is the committed one.

``model.onnx``, ``model.pt2`` or ``model.so``, the ``weights.<sha256[:16]>.data`` that it names, and ``report.json``.
The report says which model file it belongs to (``model_sha256``). While an artifact is replaced the new report waits
as ``.report.<sha256[:16]>.json`` of its model, so that whichever model is there, its own report is found.
"""

import json
import mmap
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flowopt.formats.digest import file_sha256

ONNX_MODEL = "model.onnx"
TORCH_MODEL = "model.pt2"
TVM_MODEL = "model.so"
MODEL_FILES = (ONNX_MODEL, TORCH_MODEL, TVM_MODEL)
REPORT_FILE = "report.json"
# Keys of the model's own metadata (ONNX metadata_props).
VERSION_KEY = "flowopt.version"
INTERFACE_KEY = "flowopt.interface"
OUTPUT_NAMES_KEY = "flowopt.output_names"
WEIGHTS_KEY = "flowopt.weights_sha256"
# The same interface inside a .pt2, and the prefix of stored state in its state dictionary.
INTERFACE_FILE = "flowopt.interface.json"
STATE_PREFIX = "flowopt.state."

WEIGHTS_NAME = re.compile(r"weights\.[0-9a-f]{16}\.data")
_WEIGHTS_IN_BYTES = re.compile(WEIGHTS_NAME.pattern.encode())
# A report of a large model has a few MiB.
_MOST_REPORT_BYTES = 1 << 26


@dataclass(frozen=True, slots=True)
class Committed:
    """The model of a folder, the digest of its file, and its own report (None: lost or of another model)."""

    model: Path
    sha256: str
    report: Mapping[str, object] | None


def weights_name(sha256: str) -> str:
    """File name of weights with this digest."""
    return f"weights.{sha256[:16]}.data"


def pending_report_name(model_sha256: str) -> str:
    """File name of a report whose model is about to be, or has just been, put in place."""
    return f".report.{model_sha256[:16]}.json"


def referenced_weights(model: Path) -> frozenset[str]:
    """Names of the weight files that a model may read.

    Names stand as plain text in the protobuf, and in the library's constants. Searching for them cannot miss one;
    that it could find one too many only keeps a file alive.
    """
    if model.suffix == ".pt2" or model.stat().st_size == 0:
        return frozenset()
    with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return frozenset(found[0].decode() for found in _WEIGHTS_IN_BYTES.finditer(data))


def committed(folder: Path) -> Committed | None:
    """The artifact in a folder, or None when there is no model file.

    Two model files are there only when a run that changed the target was interrupted after its commit point: then
    the new model is the one whose report is still pending, or else the one that ``report.json`` belongs to.
    """
    found = [_described(folder, name) for name in MODEL_FILES if (folder / name).is_file()]
    if not found:
        return None
    return min(found, key=lambda pair: pair[0])[1]


def read_report(path: Path) -> Mapping[str, object] | None:
    """A report file's object; None when it is absent, a link, over 64 MiB, or no JSON object."""
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MOST_REPORT_BYTES:
            return None
        value = json.loads(path.read_text(encoding="utf-8"))
    # The parser recurses: RecursionError where it is nested deeper than the stack.
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _described(folder: Path, name: str) -> tuple[int, Committed]:
    model = folder / name
    sha256 = file_sha256(model)
    for rank, report_name in enumerate((pending_report_name(sha256), REPORT_FILE)):
        report = read_report(folder / report_name)
        if report is not None and report.get("model_sha256") == sha256:
            return rank, Committed(model, sha256, report)
    return 2, Committed(model, sha256, None)
