"""Load an archive of ``torch.export.save``."""

import hashlib
import re
import zipfile
from pathlib import Path

from flowopt.errors import MalformedModel, Untrusted
from flowopt.ir.quiet import quiet
from flowopt.program.from_exported import program_from_exported
from flowopt.program.program import Program, Provenance

_LFS_POINTER = b"version https://git-lfs"
_GRAPH = re.compile(r"[^/]+/models/[^/]+\.json")


def load_archive(path: Path, *, trust: str) -> Program:
    """Load a ``.pt2`` archive through torch.

    Raises:
        MalformedModel: not a file, or not an archive of ``torch.export``; says what it is instead.
        Untrusted: ``trust`` is not ``code``.
    """
    _require_archive(path)
    if trust != "code":
        raise Untrusted(
            f"refused {path.name}: torch.export archives can hold code",
            why="torch.export.load runs pickles, shape expressions and guards that it finds in the file",
            hint=f"if you trust the author: add --trust code (trust='code'); else ask for a factory: "
            f"flowopt optimize package.module:factory instead of {path.name}",
        )
    import torch

    try:
        with quiet():
            exported = torch.export.load(path).run_decompositions({})
    except Exception as error:
        # torch raises whatever the file provokes; the user needs the file's name and the first line.
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise MalformedModel(
            f"torch.export cannot load {path.name}: {type(error).__name__}: {first}",
            hint=f"export it again with torch {torch.__version__}; "
            "outputs of library classes need that library imported",
        ) from error
    provenance = Provenance(path.name, torch.__version__, _sha256(path))
    return program_from_exported(exported, {}, provenance)


def _require_archive(path: Path) -> None:
    if path.is_dir():
        raise MalformedModel(
            f"{path} is a folder, not a torch.export archive", hint="flowopt verify takes artifact folders"
        )
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise MalformedModel(f"{path.name} is empty", hint="download or export it again")
    if head.startswith(_LFS_POINTER):
        raise MalformedModel(f"{path.name} is a Git LFS pointer, not the model", hint="git lfs pull")
    if head.lstrip()[:1] == b"<":
        raise MalformedModel(
            f"{path.name} is an HTML or XML page, not a model", hint="download it again; check the address"
        )
    if not zipfile.is_zipfile(path):
        raise MalformedModel(
            f"{path.name} is no zip archive: cut off, or of another format",
            hint="save models with torch.export.save(torch.export.export(model, args), path)",
        )
    names = _members(path)
    if any(_GRAPH.fullmatch(name) for name in names):
        return
    if any(name.endswith("constants.pkl") for name in names):
        raise MalformedModel(
            f"{path.name} is TorchScript (torch.jit.save), not a torch.export archive",
            hint="export the model with torch.export, or name its factory: flowopt optimize package.module:factory",
        )
    if any(name.endswith("data.pkl") for name in names):
        raise MalformedModel(
            f"{path.name} is a pickle of torch.save (a module or a state dict), not a torch.export archive",
            hint="name a factory that builds and loads it: flowopt optimize package.module:factory",
        )


def _members(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except zipfile.BadZipFile as error:
        raise MalformedModel(f"{path.name} is a damaged zip archive: {error}", hint="download it again") from error
    # Weights are archives themselves: of a file that is cut off, Python finds the last whole one inside.
    if min((m.header_offset for m in members), default=0) > 0:
        raise MalformedModel(f"{path.name} is a damaged zip archive: its end is missing", hint="download it again")
    return [m.filename for m in members]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
