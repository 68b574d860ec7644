"""Compiled modules as files that need no compiler where they run."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowopt.errors import InternalError
from flowopt.lowering.tvm.cuda.nvcc import device_code

_SOURCE, _BINARY = b"cuda", b"fatbin"


@dataclass(frozen=True, slots=True)
class CudaLibrary:
    """An executable of Relax's virtual machine, its kernels compiled for one architecture.

    Attributes:
        executable: the ``relax.VMExecutable``. Where TVM found no CUDA driver it holds source, and only the written
            library holds device code.
        arch: such as sm_90.
    """

    executable: Any
    arch: str

    def source(self) -> str:
        """The CUDA source of all kernels; empty for a program without any."""
        return "\n".join(module.inspect_source("cuda") for module in self._device_modules())

    def export_library(self, path: str | Path, *, options: Sequence[str] = ()) -> None:
        """Write the shared library: ``tvm.runtime.load_module`` reads it on a machine with the GPU.

        Args:
            path: of the library.
            options: of the linker's driver, in place of TVM's own.

        Raises:
            MissingDependency: there is no nvcc.
            InternalError: nvcc refuses the source, or TVM stores its modules in another form than expected.
        """
        words = {"options": list(options)} if options else {}
        self.executable.export_library(str(path), fpack_imports=self._packed, **words)

    def _device_modules(self) -> list[Any]:
        hosts = self.executable.mod.imports
        return [module for host in hosts for module in host.imports if module.kind == "cuda"]

    def _packed(self, module: Any, is_system_library: bool, prefix: str, folder: str) -> str:
        """Everything but the host's functions as an object file: bytecode, constants, kernels."""
        import tvm

        stored = tvm.get_global_func("runtime.ModulePackImportsToTensor")(module).numpy().tobytes()
        for device_module in self._device_modules():
            source = device_module.inspect_source("cuda").encode()
            # Where TVM found the driver, its module holds what nvcc made already.
            if source in stored:
                stored = with_binary(stored, source, device_code(source.decode(), self.arch))
        hosts = [host for host in module.imports if host.kind == "llvm"]
        made = tvm.get_global_func("codegen.codegen_blob")(
            stored, is_system_library, hosts[0].get_function("_get_target_string")(), prefix
        )
        path = Path(folder, f"{prefix}device.o")
        made.write_to_file(str(path))
        return str(path)


def with_binary(stored: bytes, source: bytes, binary: bytes) -> bytes:
    """Replace the source of kernels by their machine code in TVM's stored modules.

    TVM stores [size of the rest] ... ["cuda"] [size of the module] ["cuda"] [functions] [source], where a size is 8
    bytes, lowest first, and every text and every binary has its size before it. The second "cuda" is the format of
    what ends the module; the runtime hands every other format to the driver as it is. TVM has no call for this.

    Raises:
        InternalError: that is not what is stored.
    """
    tail = _sized(source)
    start = stored.rfind(tail)
    named = start
    while named > 0:
        named = stored.rfind(_sized(_SOURCE), 0, named)
        head = stored[:named]
        begin = len(head) - 8
        size = start + len(tail) - named
        if named > 8 and head[begin:] == struct.pack("<Q", size) and head[:begin].endswith(_sized(_SOURCE)):
            functions = stored[named + len(_sized(_SOURCE)) : start]
            module = _sized(_BINARY) + functions + _sized(binary)
            whole = head[8:begin] + _sized(module) + stored[start + len(tail) :]
            if stored[:8] == struct.pack("<Q", len(stored) - 8):
                return struct.pack("<Q", len(whole)) + whole
    raise InternalError(
        "the kernels cannot be stored as machine code",
        why="this TVM stores modules in another form than version 0.27 does",
        hint="pip install 'apache-tvm==0.27.*'",
    )


def _sized(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data
