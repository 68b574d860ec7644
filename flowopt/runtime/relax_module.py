"""Run a library that ``--target tvm`` made on torch's tensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from flowopt.program.interface import Interface
from flowopt.runtime.interface import parsed_interface
from flowopt.runtime.relax_library import RelaxLibrary
from flowopt.runtime.tvm_package import tvm_package

# TVM takes no memory that begins elsewhere.
_ALIGNMENT = 64


@final
class RelaxRunner:
    """An opened library, and what it takes and returns."""

    def __init__(self, library: RelaxLibrary) -> None:
        self.loaded = library
        self.interface: Interface = parsed_interface(library.metadata.interface)

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every output by name, on the CPU; state that is not given takes its stored value."""
        given = {name: _aligned(tensor) for name, tensor in inputs.items()}
        results = self.loaded.call({name: self._on_device(tensor) for name, tensor in given.items()})
        fresh = self.loaded.metadata.fresh
        found: dict[str, Tensor] = {}
        for at, (name, result) in enumerate(zip(self.loaded.outputs, results, strict=True)):
            tensor = torch.utils.dlpack.from_dlpack(result).cpu()
            # What no kernel made for this call is the caller's memory, or the model's own.
            found[name] = tensor if at in fresh else tensor.clone()
        return found

    def _on_device(self, tensor: Tensor) -> Any:
        tvm = tvm_package()
        if tensor.numel() == 0:
            # Torch and TVM describe the strides of nothing in different ways.
            return tvm.runtime.empty(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), self.loaded.device)
        here = tvm.runtime.from_dlpack(tensor)
        if self.loaded.device == tvm.cpu():
            return here
        there = tvm.runtime.empty(here.shape, here.dtype, self.loaded.device)
        return there.copyfrom(here)


def open_relax(
    path: str | Path, *, threads: int | None = None, device: str | None = None, check_weights: bool | None = None
) -> RelaxRunner:
    """Load a library for torch's tensors; arguments and errors are those of ``RelaxLibrary.open``."""
    return RelaxRunner(RelaxLibrary.open(path, threads=threads, device=device, check_weights=check_weights))


def _aligned(tensor: Tensor) -> Tensor:
    whole = tensor.detach().cpu().contiguous()
    return whole if whole.data_ptr() % _ALIGNMENT == 0 else whole.clone()
