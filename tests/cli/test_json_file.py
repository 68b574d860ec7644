import errno
import os
from pathlib import Path
from typing import Any

import pytest

from flowopt.cli.json_file import STDOUT, require_writable, write_json
from flowopt.errors import CannotWrite


def failing(code: int) -> Any:
    def replace(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    return replace


def test_a_file_is_replaced_and_nothing_stays_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text("old")
    write_json(path, "new")
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.parametrize(("code", "error"), [(errno.ENOSPC, OSError), (errno.EACCES, CannotWrite)])
def test_a_failed_write_keeps_the_old_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, error: type[Exception]
) -> None:
    path = tmp_path / "result.json"
    path.write_text("old")
    monkeypatch.setattr(os, "replace", failing(code))
    with pytest.raises(error):
        write_json(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_refuses_a_missing_folder_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(CannotWrite, match="there is no folder"):
        require_writable(tmp_path / "none" / "result.json")


def test_refuses_a_folder(tmp_path: Path) -> None:
    with pytest.raises(CannotWrite, match="is a folder"):
        require_writable(tmp_path)


def test_stdout_and_nothing_need_no_permission() -> None:
    require_writable(STDOUT)
    require_writable(None)
