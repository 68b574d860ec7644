"""A small sound archive of torch.export, and its parts, to be changed and packed again.

The packer is our own: Python's refuses some of the names and figures that a hostile file needs.
"""

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

ROOT: Final = "model"
MODEL: Final = "models/model.json"
WEIGHTS: Final = "data/weights/model_weights_config.json"
CONSTANTS: Final = "data/constants/model_constants_config.json"
SAMPLES: Final = "data/sample_inputs/model.pt"
FIRST_NODE: Final = "linear"
WIDTH: Final = 4


class Tiny(nn.Module):
    """One linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x)
        return result


@cache
def sound_bytes() -> bytes:
    """The archive as torch writes it; its batch is 1 to 64."""
    torch.manual_seed(0)
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(Tiny().eval(), (torch.zeros(2, WIDTH),), dynamic_shapes={"x": {0: batch}})
    file = io.BytesIO()
    torch.export.save(exported, file)
    return file.getvalue()


@cache
def _parts() -> tuple[tuple[str, bytes], ...]:
    with zipfile.ZipFile(io.BytesIO(sound_bytes())) as archive:
        return tuple((n.partition("/")[2], archive.read(n)) for n in archive.namelist())


def parts() -> dict[str, bytes]:
    """The members of the sound archive, without its top folder."""
    return dict(_parts())


@dataclass(slots=True)
class Entry:
    """What the packer writes for one member; a figure that is None is the right one."""

    name: str
    data: bytes
    header_name: str | None = None
    method: int = 0
    flags: int = 0
    crc32: int | None = None
    stated_bytes: int | None = None
    stated_packed: int | None = None
    attributes: int = 0
    extra: bytes = b""
    offset: int | None = None


@dataclass(slots=True)
class Ending:
    """What stands around the members; a figure that is None is the right one."""

    before: bytes = b""
    between: bytes = b""
    after: bytes = b""
    comment: bytes = b""
    count: int | None = None


def entries(members: Mapping[str, bytes], root: str = ROOT) -> list[Entry]:
    """Members below one top folder."""
    return [Entry(f"{root}/{name}", data) for name, data in members.items()]


def packed(items: list[Entry], ending: Ending | None = None) -> bytes:
    """A zip archive of stored entries, in their order."""
    ending = ending or Ending()
    body, directory = bytearray(ending.before), bytearray()
    for item in items:
        crc = zlib.crc32(item.data) if item.crc32 is None else item.crc32
        size = len(item.data) if item.stated_bytes is None else item.stated_bytes
        stored = len(item.data) if item.stated_packed is None else item.stated_packed
        figures = (item.flags, item.method, 0, 0, crc, stored, size)
        name = item.name.encode()
        header = (item.header_name or item.name).encode()
        offset = len(body) if item.offset is None else item.offset
        body += struct.pack("<4s5H3I2H", b"PK\x03\x04", 20, *figures, len(header), 0) + header + item.data
        lengths = (len(name), len(item.extra), 0, 0, 0)
        directory += struct.pack("<4s6H3I5H2I", b"PK\x01\x02", 20, 20, *figures, *lengths, item.attributes, offset)
        directory += name + item.extra
    body += ending.between
    count = len(items) if ending.count is None else ending.count
    end = (0, 0, count, count, len(directory), len(body), len(ending.comment))
    return bytes(body + directory + struct.pack("<4s4H2IH", b"PK\x05\x06", *end) + ending.comment + ending.after)


def written(folder: Path, content: bytes) -> Path:
    """A file ``model.pt2`` in a folder."""
    path = folder / "model.pt2"
    path.write_bytes(content)
    return path


def with_members(folder: Path, changes: Mapping[str, bytes | None]) -> Path:
    """The sound archive with members replaced, added, or (None) taken away."""
    members = {**parts(), **changes}
    return written(folder, packed(entries({name: data for name, data in members.items() if data is not None})))


def with_json(folder: Path, member: str, edit: Callable[[Any], None]) -> Path:
    """The sound archive with one of its JSON texts edited in place."""
    value = json.loads(parts()[member])
    edit(value)
    return with_members(folder, {member: json.dumps(value).encode()})


def with_graph(folder: Path, edit: Callable[[Any, Any], None]) -> Path:
    """The sound archive with its document edited; ``edit`` gets the document and its graph."""
    return with_json(folder, MODEL, lambda document: edit(document, document["graph_module"]["graph"]))


def marker(folder: Path) -> Path:
    """The file that a variant creates when it runs."""
    return folder / "marker"


def touch(folder: Path) -> str:
    """A Python expression, without double quotes, that creates the marker."""
    return f"__import__('pathlib').Path('{marker(folder)}').touch()"
