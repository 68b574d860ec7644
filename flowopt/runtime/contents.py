"""Check what an ONNX artifact would read, before ONNX Runtime reads it."""

import hashlib
from pathlib import Path

from flowopt.errors import MalformedModel
from flowopt.formats.limits import DEFAULT_LIMITS, Limits
from flowopt.formats.onnx.containment import CheckedOnnx, checked_onnx
from flowopt.formats.onnx.opened import OpenedFile
from flowopt.runtime.layout import WEIGHTS_NAME, weights_name

# Above it, a full hash on every opening would cost more than the opening itself.
HASHED_BYTES = 1 << 30
_CHUNK_BYTES = 1 << 20
_AGAIN = "build the artifact again"


def checked_artifact(model: Path, *, check_hash: bool | None = None, limits: Limits = DEFAULT_LIMITS) -> CheckedOnnx:
    """Open an artifact's model and its weights: its own files, whole, and with the content of their names.

    Args:
        model: ``model.onnx`` in its folder.
        check_hash: compare content with name; None: for files up to 1 GiB.
        limits: of nodes and depth.

    Raises:
        MalformedModel: the model is no sound ONNX file, or a file is foreign, missing, a link, too short or changed.
        Untrusted: the model needs a library of operators, or runs a program.
    """
    checked = checked_onnx(model, limits, own_names=WEIGHTS_NAME)
    try:
        for tensor in checked.model.tensors:
            # flowopt writes none, and ONNX Runtime takes weights from memory for the main graph alone.
            if tensor.external is not None and tensor.place != "initializer":
                raise MalformedModel(
                    f"{model.name} keeps tensor {tensor.name!r} of an inner graph in a weight file",
                    why="flowopt did not write it",
                    hint=_AGAIN,
                )
        for name, file in checked.external.items():
            if check_hash if check_hash is not None else file.size <= HASHED_BYTES:
                _require_content(name, file)
    except BaseException:
        checked.close()
        raise
    return checked


def _require_content(name: str, file: OpenedFile) -> None:
    digest = hashlib.sha256()
    if file.data is not None:
        for at in range(0, file.size, _CHUNK_BYTES):
            digest.update(file.data[at : at + _CHUNK_BYTES])
    if weights_name(digest.hexdigest()) != name:
        raise MalformedModel(
            f"the content of {name} is not what its name says",
            why="the name holds the first 16 digits of the SHA-256 of the content",
            hint="the file was changed or damaged: copy it, or build the artifact, again",
        )
