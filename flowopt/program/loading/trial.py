"""What is tried with an untrusted file in a process of its own, before this one reads it.

Each function here is named to ``flowopt.sandbox``, and takes and returns JSON values. torch is imported when a file
has been found sound: most hostile and damaged files never get so far.
"""

from pathlib import Path

from flowopt.formats.limits import Limits
from flowopt.formats.pt2.archive import read_archive


def try_archive(path: str, limits: dict[str, int]) -> str:
    """Read, rebuild, decompose and run an archive once; returns the digest of what was read.

    Raises:
        FlowoptError: as ``load_archive``.
    """
    name = Path(path).name
    with open(path, "rb") as file:
        archive = read_archive(file, name, Limits(**limits))
        from flowopt.ir.quiet import quiet
        from flowopt.program.from_exported import program_from_exported
        from flowopt.program.loading.archive import with_rebuilder
        from flowopt.program.loading.run_once import run_once
        from flowopt.program.program import Provenance

        loaded = with_rebuilder(archive, file, name)
    with quiet():
        decomposed = loaded.exported.run_decompositions({})
    run_once(program_from_exported(decomposed, {}, Provenance("", "")))
    return archive.sha256


def try_weights(path: str) -> None:
    """Read a state dictionary with torch's restricted unpickler.

    Raises:
        FlowoptError: as ``unpickled``.
    """
    from flowopt.program.loading.weights_file import unpickled

    unpickled(Path(path))
