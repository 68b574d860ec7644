"""How much memory counts as free."""

from pathlib import Path

from flowopt.sandbox.free_memory import free_bytes

MEMINFO = "MemTotal:       9000 kB\nMemFree:         100 kB\nMemAvailable:    2000 kB\n"


def free(folder: Path, meminfo: str = "", membership: str = "", files: dict[str, str] | None = None) -> int | None:
    (folder / "meminfo").write_text(meminfo)
    (folder / "cgroup").write_text(membership)
    for name, text in (files or {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return free_bytes(folder / "meminfo", folder / "cgroup", folder)


def test_the_machine_tells_what_is_available(tmp_path: Path) -> None:
    assert free(tmp_path, MEMINFO) == 2000 * 1024


def test_a_group_of_version_2_has_left_what_it_does_not_use(tmp_path: Path) -> None:
    files = {"a/memory.max": "5000\n", "a/memory.current": "4000\n", "memory.max": "max\n"}
    assert free(tmp_path, MEMINFO, "0::/a\n", files) == 1000


def test_file_cache_that_can_be_dropped_is_free(tmp_path: Path) -> None:
    files = {
        "a/memory.max": "5000\n",
        "a/memory.current": "4000\n",
        "a/memory.stat": "active_file 9\ninactive_file 300\n",
    }
    assert free(tmp_path, "", "0::/a\n", files) == 1300


def test_a_group_of_version_1(tmp_path: Path) -> None:
    files = {
        "memory/a/memory.limit_in_bytes": "5000\n",
        "memory/a/memory.usage_in_bytes": "4500\n",
        "memory/a/memory.stat": "inactive_file 1\ntotal_inactive_file 200\n",
    }
    assert free(tmp_path, MEMINFO, "5:cpu:/a\n4:memory,x:/a\n0::/\n", files) == 700


def test_the_tightest_group_above_counts(tmp_path: Path) -> None:
    files = {
        "a/b/memory.max": "9000\n",
        "a/b/memory.current": "100\n",
        "a/memory.max": "1000\n",
        "a/memory.current": "400\n",
    }
    assert free(tmp_path, "", "0::/a/b\n", files) == 600


def test_a_container_that_sees_the_hosts_path(tmp_path: Path) -> None:
    files = {"memory.max": "1000\n", "memory.current": "400\n"}
    assert free(tmp_path, "", "0::/docker/12ab\n", files) == 600


def test_a_group_beyond_its_limit_has_nothing_left(tmp_path: Path) -> None:
    assert free(tmp_path, "", "0::/\n", {"memory.max": "1000\n", "memory.current": "1400\n"}) == 0


def test_unknown_without_either(tmp_path: Path) -> None:
    assert free(tmp_path) is None
    assert free_bytes(tmp_path / "absent", tmp_path / "absent", tmp_path) is None


def test_this_machine_has_some() -> None:
    found = free_bytes()
    assert found is None or found > 1_000_000
