"""How much memory there is to give."""

import os
from collections.abc import Iterator
from pathlib import Path

from flowopt.formats.limits import Limits

_SHARE = 0.8


def memory_bytes(limits: Limits) -> int:
    """The memory that a checking process may use: what ``limits`` say, else 80 % of the machine's; 0: unknown."""
    return limits.memory or int(_SHARE * machine_bytes())


def machine_bytes() -> int:
    """Physical memory, or the limit of this process's control group where that is smaller; 0: unknown."""
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0
    return min([physical, *control_group_bytes()])


def control_group_bytes(
    membership: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")
) -> Iterator[int]:
    """The memory limits of the control groups around this process, of version 1 and 2.

    Every group up to the mount's root counts. Inside a container the file of memberships may show the host's path,
    which does not exist here; the root then holds the container's own limit.

    Source: Linux kernel documentation, admin-guide/cgroup-v2 (memory.max) and cgroup-v1/memory.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, group = line.split(":", 2)
        if number == "0":
            root, name = mount, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = mount / "memory", "memory.limit_in_bytes"
        else:
            continue
        folder = root / group.lstrip("/")
        for above in (folder, *folder.parents):
            yield from _limit(above / name)
            if above == root:
                break


def _limit(file: Path) -> Iterator[int]:
    try:
        text = file.read_text().strip()
    except OSError:
        return
    # Version 2 writes "max" where there is no limit, version 1 a number beyond every machine.
    if text.isdecimal():
        yield int(text)
