"""What a checking process takes from itself before it reads anything."""

import contextlib
import os
import signal
import sys

from flowopt.sandbox.network import cut_network

# It has nothing to write but its answer, and that goes through a pipe.
FILE_BYTES = 64 << 20
# Between the signal that ends the process and the one that nothing can catch.
_HARD_SECONDS = 5
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38


def confine(memory: int, seconds: int, parent: int) -> None:
    """Limit the calling process for good, as far as the system knows how to.

    Without the module ``resource`` (Windows), the wall-clock limit of the parent is the only one.

    Args:
        memory: bytes of data: heap, stacks of threads, private mappings. 0: no limit.
        seconds: CPU time.
        parent: process id; when that process ends, so does this one (Linux).
    """
    _limit_resources(memory, seconds)
    cut_network()
    # After the network: a change of credentials would clear the signal.
    _bind_to(parent)


def _limit_resources(memory: int, seconds: int) -> None:
    try:
        import resource
    except ImportError:
        return
    limits = {
        resource.RLIMIT_CPU: (seconds, seconds + _HARD_SECONDS),
        resource.RLIMIT_FSIZE: (FILE_BYTES, FILE_BYTES),
        resource.RLIMIT_CORE: (0, 0),
    }
    # Not RLIMIT_AS: torch reserves address space by the gigabyte without using it.
    # Not RLIMIT_NPROC: it counts every thread of the user, in all processes.
    if memory:
        limits[resource.RLIMIT_DATA] = (memory, memory)
    for kind, wanted in limits.items():
        most = resource.getrlimit(kind)[1]
        soft, hard = wanted if most == resource.RLIM_INFINITY else (min(limit, most) for limit in wanted)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(kind, (soft, hard))


def _bind_to(parent: int) -> None:
    if sys.platform != "linux":
        return
    import ctypes

    prctl = ctypes.CDLL(None).prctl
    prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # The parent may have died before that call, and then no signal comes.
    try:
        os.kill(parent, 0)
    except ProcessLookupError:
        sys.exit("the process that asked is gone")
    except PermissionError:
        pass
