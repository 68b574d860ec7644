"""The CUDA runtime for TVM: it needs ``libcudart``, and leaves CUDA out without a word where the loader finds none."""

import contextlib
import ctypes
import sys
from pathlib import Path
from typing import Any

# What apache-tvm 0.27 is linked with.
_NAME = "libcudart.so.13"
# PyPI's packages, torch's among them, put it where no loader looks.
_FOLDERS = ("nvidia/cu13/lib", "nvidia/cuda_runtime/lib")
_TOOLKITS = ("/usr/local/cuda/lib64", "/usr/local/cuda-13.0/lib64")


def load_cuda_runtime() -> bool:
    """Make the runtime's symbols known before ``tvm`` is imported; whether one was found."""
    installed = [Path(entry, folder, _NAME) for entry in sys.path if entry for folder in _FOLDERS]
    for path in (_NAME, *(str(p) for p in (*installed, *(Path(t, _NAME) for t in _TOOLKITS)) if p.is_file())):
        with contextlib.suppress(OSError):
            ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
            return True
    return False


def load_cuda_backend(tvm: Any) -> None:
    """Load TVM's half for CUDA: without its compiler, TVM does not do so by itself. Once more does no harm."""
    with contextlib.suppress(OSError):
        ctypes.CDLL(str(Path(tvm.__file__).parent / "lib" / "libtvm_runtime_cuda.so"))
