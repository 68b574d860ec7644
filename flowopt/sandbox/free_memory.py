"""How much memory is free right now."""

import re
from collections.abc import Iterator
from pathlib import Path


def free_bytes(
    meminfo: Path = Path("/proc/meminfo"),
    membership: Path = Path("/proc/self/cgroup"),
    mount: Path = Path("/sys/fs/cgroup"),
) -> int | None:
    """What the machine has available, or the control groups around this process have left; None: unknown.

    File cache that can be dropped counts as free in both.

    Source: proc_meminfo(5), MemAvailable; Linux kernel documentation, admin-guide/cgroup-v2 (memory.current,
    memory.stat) and cgroup-v1/memory.
    """
    return min([*_available(meminfo), *_left_in_groups(membership, mount)], default=None)


def _available(meminfo: Path) -> Iterator[int]:
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", _text(meminfo), re.MULTILINE)
    if found:
        yield 1024 * int(found[1])


def _left_in_groups(membership: Path, mount: Path) -> Iterator[int]:
    for line in _text(membership).splitlines():
        number, controllers, group = line.split(":", 2)
        if number == "0":
            root, limit, usage, cache = mount, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            root, limit, usage = mount / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache = "total_inactive_file"
        else:
            continue
        folder = root / group.lstrip("/")
        # Inside a container the path may be the host's; the root then holds the container's own numbers.
        for above in (folder, *folder.parents):
            allowed, used = _text(above / limit).strip(), _text(above / usage).strip()
            if allowed.isdecimal() and used.isdecimal():
                droppable = re.search(rf"^{cache} (\d+)$", _text(above / "memory.stat"), re.MULTILINE)
                yield max(int(allowed) - int(used) + (int(droppable[1]) if droppable else 0), 0)
            if above == root:
                break


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
