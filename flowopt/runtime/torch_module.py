"""Run a ``.pt2`` that flowopt wrote itself. ``torch.export.load`` can run code found in a file: trust comes first."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from flowopt.errors import MalformedModel, ModelNotFound
from flowopt.ir.quiet import quiet
from flowopt.program.interface import Interface
from flowopt.runtime.interface import parsed_interface
from flowopt.runtime.layout import INTERFACE_FILE, STATE_PREFIX


@final
class TorchRunner:
    """A loaded program.

    Attributes:
        interface: what it takes and returns, as stored in the file.
    """

    def __init__(self, module: Any, interface: Interface, state: Mapping[str, Tensor]) -> None:
        self._module = module
        self._state = state
        self.interface = interface

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every output by name; state that is not given takes its stored value."""
        values = {**self._state, **inputs}
        arguments = [values[i.name] for i in self.interface.inputs]
        with torch.no_grad():
            result = self._module(*arguments)
        if isinstance(result, Tensor):
            return {self.interface.outputs[0].name: result}
        return {o.name: result[o.name] for o in self.interface.outputs}


def open_exported(path: str | Path) -> TorchRunner:
    """Load a ``.pt2`` written by ``lower_to_torch``. This can run code that the file contains.

    Raises:
        ModelNotFound: no such file.
        MalformedModel: not an archive that flowopt wrote.
    """
    if not Path(path).is_file():
        raise ModelNotFound(f"no file {path}")
    extra = {INTERFACE_FILE: ""}
    try:
        with quiet():
            exported = torch.export.load(str(path), extra_files=extra)
    except Exception as error:
        # The loader raises whatever its zip and JSON readers raise.
        raise MalformedModel(f"torch cannot load {Path(path).name}", why=str(error).splitlines()[0]) from error
    if not extra[INTERFACE_FILE]:
        raise MalformedModel(f"{Path(path).name} is not an archive that flowopt wrote")
    interface = parsed_interface(json.loads(extra[INTERFACE_FILE]))
    state = {
        name.removeprefix(STATE_PREFIX): tensor.detach()
        for name, tensor in exported.state_dict.items()
        if name.startswith(STATE_PREFIX)
    }
    return TorchRunner(exported.module(), interface, state)
