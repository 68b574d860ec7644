"""Leave the network, where the system lets a process do that."""

import os
import sys

_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000


def network_namespace() -> str:
    """Which network this process sees; one that differs from its parent's has been cut off. Empty: unknown."""
    try:
        return os.readlink("/proc/self/ns/net")
    except OSError:
        return ""


def cut_network() -> None:
    """Move to an empty network, in which not even 127.0.0.1 answers. Where that is not permitted, nothing changes.

    The process must have no threads yet.

    Source: unshare(2), user_namespaces(7).
    """
    if sys.platform != "linux":
        return
    # os.unshare exists from Python 3.12 on.
    import ctypes

    unshare = ctypes.CDLL(None).unshare
    user, group = os.geteuid(), os.getegid()
    if unshare(_CLONE_NEWNET) == 0:
        return
    # A user namespace gives everyone else the right, but takes root's right to read the files of other users.
    if user == 0 or unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        return
    try:
        _write("setgroups", "deny")
        _write("uid_map", f"{user} {user} 1")
        _write("gid_map", f"{group} {group} 1")
    except OSError:
        # Without the maps the ids look foreign in here, but files are still opened as the same user.
        return


def _write(name: str, text: str) -> None:
    file = os.open(f"/proc/self/{name}", os.O_WRONLY)
    try:
        os.write(file, text.encode())
    finally:
        os.close(file)
