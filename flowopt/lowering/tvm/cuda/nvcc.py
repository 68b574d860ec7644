"""CUDA source becomes device code."""

import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path

from flowopt.errors import FlowoptError, InternalError, MissingDependency, UserError

# Where PyPI's nvidia-cuda-nvcc puts it: in no folder of PATH.
_IN_PACKAGES = "nvidia/cu13/bin/nvcc"
_LAST_LINES = 12


def require_nvcc() -> Path:
    """The compiler of device code: of PATH, or of PyPI's nvidia-cuda-nvcc.

    Raises:
        MissingDependency: there is none, or none of the C++ compiler that it takes the host's headers from.
    """
    on_path = shutil.which("nvcc")
    packaged = Path(sysconfig.get_path("purelib")) / _IN_PACKAGES
    if on_path is None and not packaged.is_file():
        raise MissingDependency(
            "compiling for a GPU needs nvcc, and it is neither in PATH nor installed as a package",
            why="TVM writes CUDA source; without nvcc the artifact would need a compiler where it runs",
            hint="pip install nvidia-cuda-nvcc  (100 MB, no driver and no GPU needed)\n"
            "or add the bin folder of a CUDA toolkit to PATH",
        )
    if shutil.which("g++") is None and shutil.which("c++") is None:
        raise MissingDependency(
            "compiling for a GPU needs a C++ compiler, and there is no g++ in PATH",
            why="nvcc reads the system's headers through it, and it links the library",
            hint="apt install g++",
        )
    return Path(on_path) if on_path is not None else packaged


def device_code(source: str, arch: str) -> bytes:
    """CUDA source as a fat binary: machine code for the architecture, and PTX for those after it.

    TVM's own call of nvcc says ``--use_fast_math``, which rounds divisions, roots and exponentials coarser than
    float32 does and drops denormal numbers. A float32 program stays one.

    Args:
        source: one translation unit.
        arch: such as sm_90.

    Raises:
        MissingDependency: there is no nvcc.
        UserError: nvcc does not know the architecture.
        InternalError: nvcc refuses the source.
    """
    nvcc = require_nvcc()
    virtual = arch.replace("sm_", "compute_")
    with tempfile.TemporaryDirectory(prefix="flowopt-nvcc-") as folder:
        written, made = Path(folder, "kernels.cu"), Path(folder, "kernels.fatbin")
        written.write_text(source, encoding="utf-8")
        architectures = f"arch={virtual},code=[{arch},{virtual}]"
        command = [str(nvcc), "--fatbin", "-O3", "-w", "-gencode", architectures, "-o", str(made), str(written)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise _refusal(done.stdout + done.stderr, nvcc, arch)
        return made.read_bytes()


def _refusal(words: str, nvcc: Path, arch: str) -> FlowoptError:
    last = "\n".join(words.strip().splitlines()[-_LAST_LINES:])
    if "Unsupported gpu architecture" in words:
        return UserError(
            f"this nvcc does not compile for {arch}",
            why=last,
            hint=f"`{nvcc} --list-gpu-code` prints what it knows\npip install --upgrade nvidia-cuda-nvcc",
        )
    return InternalError(f"nvcc refuses the CUDA source for {arch}", why=last)
