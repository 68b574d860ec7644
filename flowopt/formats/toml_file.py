"""A small TOML file, read as what it is or refused in one sentence."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from flowopt.errors import UserError
from flowopt.formats.printable import printable

_MOST_BYTES: Final = 1 << 16


def read_toml(path: Path, what: str, example: str, *, why: str = "") -> Mapping[str, Any]:
    """The content of a file of at most 64 KiB.

    Args:
        path: the file.
        what: what it describes, such as ``pipeline``.
        example: a line that is enough.
        why: why the path is taken for a file, where that is not plain.

    Raises:
        UserError: no such file, too large, or not TOML; it names the file and the place.
    """
    if not path.is_file():
        raise UserError(
            f"no {what} file {path}", why=why, hint=f"check the path; a file with the line {example} is enough"
        )
    try:
        with path.open("rb") as file:
            raw = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", hint="check its permissions: ls -l") from error
    if len(raw) > _MOST_BYTES:
        raise UserError(f"{path} has more than {_MOST_BYTES:,} bytes", hint=f"a {what} has a few lines: check the path")
    try:
        return tomllib.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not TOML: byte {error.start:,} is not UTF-8", hint="save it as UTF-8 text"
        ) from error
    # ValueError: also of a number with thousands of digits. RecursionError: of thousands of brackets.
    except (ValueError, RecursionError) as error:
        *before, last = raw.decode("utf-8").split("\n")
        end = f"at line {len(before) + 1}, column {len(last) + 1}, the end"
        problem = printable(str(error).replace("at end of document", end), 200)
        raise UserError(f"{path} is not TOML: {problem}", hint=f"such as {example}") from error
