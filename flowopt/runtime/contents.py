"""Check what an ONNX artifact would read, before ONNX Runtime reads it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flowopt.errors import MalformedModel
from flowopt.runtime.layout import WEIGHTS_NAME, file_sha256, weights_name

# Above it, a full hash on every opening would cost more than the opening itself.
HASHED_BYTES = 1 << 30


def require_intact_weights(model: Path, *, check_hash: bool | None = None) -> None:
    """Every file that the model reads is one of its own weight files, whole, and with the content of its name.

    Args:
        model: ``model.onnx`` in its folder.
        check_hash: compare content with name; None: for files up to 1 GiB. Without it, links are refused instead.

    Raises:
        MalformedModel: the model does not parse, or a file is foreign, missing, too short or changed.
    """
    lengths: dict[str, int] = {}
    for tensor in _external_tensors(model):
        entries = {e.key: e.value for e in tensor.external_data}
        location = entries.get("location", "")
        if not WEIGHTS_NAME.fullmatch(location):
            raise MalformedModel(
                f"{model.name} reads {location!r} for tensor {tensor.name!r}",
                why="an artifact reads weights.<sha256[:16]>.data in its own folder and nothing else",
            )
        start, length = _number(entries, "offset", model), _number(entries, "length", model)
        lengths[location] = max(lengths.get(location, 0), start + length)
    for location, length in lengths.items():
        _require_file(model.parent / location, length, check_hash)


def _require_file(file: Path, length: int, check_hash: bool | None) -> None:
    if not file.is_file():
        raise MalformedModel(f"the weight file {file.name} is missing", hint="copy the whole folder, or build it again")
    status = file.lstat()
    if file.stat().st_size < length:
        raise MalformedModel(
            f"{file.name} has {file.stat().st_size} bytes, the model reads {length}",
            hint="the file is truncated: copy it, or build the artifact, again",
        )
    if check_hash if check_hash is not None else file.stat().st_size <= HASHED_BYTES:
        if weights_name(file_sha256(file)) != file.name:
            raise MalformedModel(
                f"the content of {file.name} is not what its name says",
                why="the name holds the first 16 digits of the SHA-256 of the content",
                hint="the file was changed or damaged: copy it, or build the artifact, again",
            )
    elif file.is_symlink() or status.st_nlink != 1:
        raise MalformedModel(f"{file.name} is a link", why="a link could lead to any file of this machine")


def _external_tensors(model: Path) -> Iterator[Any]:
    import onnx

    try:
        proto = onnx.load(str(model), load_external_data=False)
    except Exception as error:
        # The protobuf package's own type, which has another name in each of its implementations.
        raise MalformedModel(f"{model.name} is no ONNX model", why=str(error)) from error
    if not proto.graph.node:
        raise MalformedModel(f"{model.name} holds no graph")
    for tensor in _tensors(proto):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            yield tensor


def _tensors(message: Any) -> Iterator[Any]:
    """Every tensor in a message, however deep: initializers, sparse ones, attributes, subgraphs, functions."""
    if message.DESCRIPTOR.name == "TensorProto":
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for child in value if field.is_repeated else (value,):
                yield from _tensors(child)


def _number(entries: dict[str, str], key: str, model: Path) -> int:
    text = entries.get(key, "")
    if not text.isdecimal():
        raise MalformedModel(f"{model.name}: external data with {key}={text!r}")
    return int(text)
