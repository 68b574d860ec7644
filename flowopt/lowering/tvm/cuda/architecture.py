"""The GPUs that device code can be compiled for."""

from typing import Any

from flowopt.errors import UserError

# What nvcc 13.0 compiles for, with a GPU of each: the name says nothing to who only knows the card.
ARCHITECTURES = {
    "sm_75": "T4, RTX 20",
    "sm_80": "A100, A30",
    "sm_86": "A10, A40, RTX 30",
    "sm_87": "Jetson Orin",
    "sm_88": "",
    "sm_89": "L4, L40, RTX 40",
    "sm_90": "H100, H200",
    "sm_100": "B100, B200",
    "sm_103": "B300",
    "sm_110": "Jetson Thor",
    "sm_120": "RTX 50, RTX PRO 6000",
    "sm_121": "GB10",
}

# The same on all of them. More shared memory than this has to be asked for at every launch, which the runtime
# does for dynamic shared memory alone.
MAX_THREADS = 1024
SHARED_BYTES = 48 * 1024
# Of one thread, when its registers do not hold what it keeps.
PRIVATE_BYTES = 512 * 1024
_WARP = 32


def cuda_target(arch: str) -> Any:
    """The ``tvm.target.Target`` of an architecture, its host this machine's processor.

    It names every limit that a schedule asks for, so that nothing looks for a GPU, and no library: every operator
    becomes a kernel in the artifact.

    Raises:
        UserError: there is no such architecture.
    """
    require_architecture(arch)
    import tvm

    return tvm.target.Target(
        {
            "kind": "cuda",
            "arch": arch,
            "max_num_threads": MAX_THREADS,
            "max_threads_per_block": MAX_THREADS,
            "max_shared_memory_per_block": SHARED_BYTES,
            "thread_warp_size": _WARP,
        },
        host="llvm",
    )


def require_architecture(arch: str) -> None:
    """Refuse what is not the name of an architecture, without tvm."""
    if arch in ARCHITECTURES:
        return
    known = ", ".join(f"{name} ({cards})" if cards else name for name, cards in ARCHITECTURES.items())
    spelled = _spelled(arch)
    asked = "on the machine with the GPU, `nvidia-smi --query-gpu=compute_cap --format=csv` prints 9.0 for sm_90"
    raise UserError(
        f"no CUDA architecture {arch!r}",
        why=f"device code is compiled for one of {known}",
        hint=f"--arch {spelled}" if spelled in ARCHITECTURES else f"--arch sm_90 for an H100; {asked}",
    )


def _spelled(arch: str) -> str:
    """9.0, 90, compute_90 and sm_90a as sm_90."""
    digits = "".join(character for character in arch if character.isdigit())
    return f"sm_{digits}" if digits else arch
