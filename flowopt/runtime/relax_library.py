"""Run a library that ``--target tvm`` made, with numpy and apache-tvm alone: nothing here imports torch."""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, Final, final

import numpy as np

from flowopt.errors import MalformedModel, MissingDependency, ModelNotFound, UserError
from flowopt.formats.digest import file_sha256
from flowopt.runtime.arrays import described_input, require_fitting
from flowopt.runtime.cuda_runtime import load_cuda_backend
from flowopt.runtime.layout import TVM_MODEL, weights_name
from flowopt.runtime.processor import lacking_here
from flowopt.runtime.relax_metadata import LibraryMetadata, StoredTensor, numpy_dtype, read_metadata
from flowopt.runtime.tvm_package import tvm_package

MAIN_FUNCTION: Final = "main"
# Above it, a full hash on every opening would cost more than the opening itself.
_HASHED_BYTES: Final = 1 << 30
_AGAIN: Final = "build the artifact again"


@final
class RelaxLibrary:
    """A compiled model in the Relax virtual machine. Open one with ``RelaxLibrary.open``.

    Attributes:
        metadata: what the library says of itself.
        device: the TVM device that runs it.
        inputs, outputs: their names, in order.
    """

    def __init__(self, machine: Any, metadata: LibraryMetadata, device: Any, tensors: Sequence[Any]) -> None:
        self.metadata = metadata
        self.device = device
        self.inputs = tuple(str(one["name"]) for one in metadata.interface["inputs"])
        self.outputs = tuple(str(one["name"]) for one in metadata.interface["outputs"])
        self._main = machine[MAIN_FUNCTION]
        self._weights = list(tensors[: metadata.parameters])
        self._state = {name: tensors[at] for name, at in metadata.state.items()}
        # The virtual machine keeps its registers in itself: two calls at once would share them.
        self._lock = Lock()

    @staticmethod
    def open(
        folder: str | Path, *, device: str | None = None, threads: int | None = None, check_weights: bool | None = None
    ) -> "RelaxLibrary":
        """Load a library and map its weights. **Loading runs the library's code**: open only what you trust.

        Args:
            folder: the artifact's folder, or the library itself.
            device: ``cpu`` or ``cuda``; None: what it was compiled for.
            threads: of TVM's pool, which is the whole process's; None lets TVM choose.
            check_weights: compare the weights' content with their name; None: up to 1 GiB.

        Raises:
            ModelNotFound: no such file.
            MalformedModel: a library that flowopt did not write, or damaged weights.
            UserError: it was compiled for another processor or device than this one.
            MissingDependency: apache-tvm, or a CUDA device, is not here.
        """
        path = Path(folder) / TVM_MODEL if Path(folder).is_dir() else Path(folder)
        if not path.is_file():
            raise ModelNotFound(f"no library at {path}")
        metadata = read_metadata(path)
        tvm = tvm_package()
        place = _device(tvm, metadata, device, path)
        _require_processor(tvm, metadata, path)
        if threads is not None:
            # 1: as many threads as said, whatever the cores are.
            tvm.get_global_func("runtime.config_threadpool")(1, threads)
        tensors = _weights(tvm, metadata, path.parent, place, check_weights)
        return RelaxLibrary(_machine(tvm, path, place), metadata, place, tensors)

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Every output by name, for arrays by name; state that is not given takes its stored value.

        Raises:
            UserError: an input is missing or unknown, or has another dtype, rank or size than the model takes.
        """
        tvm = tvm_package()
        specs = {str(one["name"]): one for one in self.metadata.interface["inputs"]}
        unknown = sorted(inputs.keys() - specs.keys())
        missing = sorted(specs.keys() - inputs.keys() - self._state.keys())
        if unknown or missing:
            raise UserError(
                f"inputs {'unknown' if unknown else 'missing'}: {', '.join(unknown or missing)}",
                hint=f"the model takes {', '.join(map(described_input, specs.values()))}",
            )
        arrays = {name: np.asarray(given) for name, given in inputs.items()}
        require_fitting(arrays, specs, self.metadata.interface["dims"])
        values = {name: tvm.runtime.tensor(np.ascontiguousarray(array), self.device) for name, array in arrays.items()}
        return {name: one.numpy() for name, one in zip(self.outputs, self.call(values), strict=True)}

    def call(self, values: Mapping[str, Any]) -> list[Any]:
        """The outputs as TVM tensors, for TVM tensors on this device. Those that are not ``metadata.fresh`` may be
        an input, a weight or a constant: copy them before they are changed.
        """
        arguments = [values[name] if name in values else self._state[name] for name in self.inputs]
        with self._lock:
            return list(self._main(*arguments, self._weights))


def tensors_of(tvm: Any, mapped: np.ndarray, table: Sequence[StoredTensor], device: Any) -> list[Any]:
    """Tensors of a file whose bytes are given: views of them on the CPU where numpy knows the dtype, else copies."""
    return [_tensor(tvm, mapped, one, device) for one in table]


def _machine(tvm: Any, path: Path, device: Any) -> Any:
    """The library in a virtual machine, loaded as a copy whose path no earlier load had.

    The system's loader takes a library whose path it knows for the one that it has, also after another file took its
    place; links are followed before it looks.
    """
    with tempfile.TemporaryDirectory(prefix="flowopt-") as folder:
        copy = Path(folder) / TVM_MODEL
        shutil.copyfile(path, copy)
        try:
            return tvm.runtime.vm.VirtualMachine(tvm.runtime.load_module(str(copy)), device)
        # TVM raises RuntimeError and subclasses of it, the loader OSError.
        except (RuntimeError, OSError, ValueError, AttributeError) as error:
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise MalformedModel(
                f"{path} is no library that TVM can load", why=reason, hint=f"{_AGAIN}, on this machine"
            ) from error


def _require_processor(tvm: Any, metadata: LibraryMetadata, path: Path) -> None:
    """An instruction that the processor lacks would end the process without a word."""
    lacking = lacking_here(tvm, metadata.features)
    if lacking:
        shown = ", ".join(lacking[:4]) + (", ..." if len(lacking) > 4 else "")
        raise UserError(
            f"{path} was compiled for {metadata.arch}, and this processor lacks {shown}",
            hint="build it on this machine, or with --arch NAME of a processor that both are, such as x86-64-v3;\n"
            "to build for another processor than this one: --verify off, and flowopt verify where it runs",
        )


def _device(tvm: Any, metadata: LibraryMetadata, wanted: str | None, path: Path) -> Any:
    if wanted is not None and wanted != metadata.device:
        raise UserError(
            f"{path} was compiled for {metadata.device}, not for {wanted}",
            hint=f"build it with --target {'tvm-cuda' if wanted == 'cuda' else 'tvm'}",
        )
    if metadata.device == "cuda":
        load_cuda_backend(tvm)
    device = tvm.device(metadata.device, 0)
    if not device.exist:
        raise MissingDependency(
            f"{path} runs on CUDA, and no device answers", hint="run it on a machine with a GPU and its driver"
        )
    return device


def _weights(tvm: Any, metadata: LibraryMetadata, folder: Path, device: Any, check_weights: bool | None) -> list[Any]:
    """Parameters and stored state, in the order of ``tensors``."""
    if metadata.weights is None:
        return tensors_of(tvm, np.zeros(0, np.uint8), metadata.tensors, device)
    path = folder / metadata.weights
    if path.is_symlink() or not path.is_file():
        raise MalformedModel(f"the weights {path} are missing", hint=f"copy the whole folder, or {_AGAIN}")
    size = path.stat().st_size
    needed = max((one.offset + one.bytes for one in metadata.tensors), default=0)
    if size < needed:
        raise MalformedModel(f"{path} has {size} bytes of {needed}", hint=f"copy it again, or {_AGAIN}")
    is_checked = size <= _HASHED_BYTES if check_weights is None else check_weights
    if is_checked and weights_name(file_sha256(path)) != path.name:
        raise MalformedModel(
            f"the content of {path} is not what its name says",
            why="the name holds the first 16 digits of the SHA-256 of the content",
            hint=f"the file was changed or damaged: copy it, or {_AGAIN}",
        )
    # Private: DLPack knows no memory that is only read, and nothing may reach the file.
    return tensors_of(tvm, np.memmap(path, dtype=np.uint8, mode="c"), metadata.tensors, device)


def _tensor(tvm: Any, mapped: np.ndarray, entry: StoredTensor, device: Any) -> Any:
    raw = mapped[entry.offset : entry.offset + entry.bytes]
    array = raw.view(numpy_dtype(entry.dtype)).reshape(entry.shape)
    # Numpy exports its own dtypes alone, and TVM takes no memory of no size.
    if device == tvm.cpu() and array.dtype.kind in "fiub" and array.size:
        return tvm.runtime.from_dlpack(array)
    return tvm.runtime.tensor(np.ascontiguousarray(array), device)
