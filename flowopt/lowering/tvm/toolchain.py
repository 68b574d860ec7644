"""What compiling needs on this machine: looked for before anything is computed."""

from importlib.metadata import version
from typing import Any

from flowopt.errors import MissingDependency, UserError
from flowopt.lowering.tvm.job import Device
from flowopt.runtime.tvm_package import tvm_package

# Its ToJSONGraph ends the process, whatever the module.
_BROKEN_FFI = "0.1.15"


def require_toolchain(device: Device, arch: str | None) -> Any:
    """The package ``tvm``, once all that compiling for a device needs is known to be there.

    Raises:
        MissingDependency: what is not.
        UserError: an architecture that is unknown.
    """
    tvm = tvm_package()
    ffi = version("apache-tvm-ffi")
    if ffi.startswith(_BROKEN_FFI):
        raise MissingDependency(
            f"apache-tvm-ffi {ffi} crashes when it writes a module", hint='pip install "apache-tvm-ffi<0.1.15"'
        )
    from tvm.support.cc import get_cc

    if get_cc() is None:
        raise MissingDependency(
            "linking a library needs a C++ compiler, and none is on the PATH",
            hint="apt install g++ (or clang), or set CXX to one",
        )
    if device == "cuda":
        from flowopt.lowering.tvm.cuda.architecture import require_architecture
        from flowopt.lowering.tvm.cuda.nvcc import require_nvcc

        require_architecture(arch or "")
        require_nvcc()
    elif arch is not None:
        codegen = tvm.target.codegen
        if not codegen.llvm_is_valid_cpu(arch, codegen.llvm_get_system_triple()):
            raise UserError(
                f"LLVM knows no processor {arch!r} for {codegen.llvm_get_system_triple()}",
                hint="use a name of LLVM's, such as x86-64-v3 or znver4, or leave out --arch for this machine's",
            )
    return tvm
