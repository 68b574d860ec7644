"""Which memory a checking process gets where its limits name none."""

import os
from pathlib import Path

import pytest

from flowopt.formats.limits import GIBIBYTE, Limits
from flowopt.sandbox import memory
from flowopt.sandbox.memory import control_group_bytes, machine_bytes, memory_bytes


def limits_of(folder: Path, membership: str, files: dict[str, str]) -> list[int]:
    (folder / "cgroup").write_text(membership)
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return list(control_group_bytes(folder / "cgroup", folder))


def test_every_group_of_version_2_up_to_the_root_counts(tmp_path: Path) -> None:
    files = {"a/b/memory.max": "300\n", "a/memory.max": "max\n", "memory.max": "200\n", "c/memory.max": "1\n"}
    assert limits_of(tmp_path, "0::/a/b\n", files) == [300, 200]


def test_the_memory_group_of_version_1_counts(tmp_path: Path) -> None:
    files = {"memory/a/memory.limit_in_bytes": "300\n", "cpu/a/memory.limit_in_bytes": "1\n"}
    assert limits_of(tmp_path, "5:cpu:/a\n4:memory,x:/a\n0::/\n", files) == [300]


def test_the_limit_of_a_container_that_sees_the_hosts_path(tmp_path: Path) -> None:
    files = {"memory/memory.limit_in_bytes": "300\n"}
    assert limits_of(tmp_path, "4:memory:/docker/12ab\n", files) == [300]


def test_no_groups_no_limits(tmp_path: Path) -> None:
    assert list(control_group_bytes(tmp_path / "absent", tmp_path)) == []


def test_the_smaller_of_group_and_machine_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    monkeypatch.setattr(memory, "control_group_bytes", lambda: iter([2 * physical, 1000]))
    assert machine_bytes() == 1000
    assert memory_bytes(Limits()) == 800
    monkeypatch.setattr(memory, "control_group_bytes", lambda: iter([2 * physical]))
    assert machine_bytes() == physical


def test_a_limit_that_is_named_counts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "machine_bytes", lambda: 1000)
    assert memory_bytes(Limits(memory=3 * GIBIBYTE)) == 3 * GIBIBYTE
