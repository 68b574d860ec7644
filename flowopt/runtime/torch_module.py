"""Run a ``.pt2`` that flowopt wrote itself."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from flowopt.errors import MalformedModel, ModelNotFound
from flowopt.formats.limits import DEFAULT_LIMITS, Limits
from flowopt.program.interface import Interface
from flowopt.program.loading.archive import exported_archive
from flowopt.program.loading.trust import Trust
from flowopt.runtime.interface import parsed_interface_text
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


def open_exported(path: str | Path, *, trust: Trust = "data", limits: Limits = DEFAULT_LIMITS) -> TorchRunner:
    """Load a ``.pt2`` written by ``lower_to_torch``.

    Args:
        path: the archive.
        trust: ``code`` hands it to torch's loader, which runs what it says; else flowopt's own reader takes it.
        limits: what that reader may cost.

    Raises:
        ModelNotFound: no such file.
        MalformedModel: not an archive that flowopt wrote.
        Untrusted: a part that torch would run, such as a custom operator.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelNotFound(f"no file {path}")
    loaded = exported_archive(path, trust=trust, limits=limits)
    if INTERFACE_FILE not in loaded.extra:
        raise MalformedModel(
            f"{path.name} is not an archive that flowopt wrote", hint="flowopt optimize takes other archives"
        )
    interface = parsed_interface_text(loaded.extra[INTERFACE_FILE])
    state = {
        name.removeprefix(STATE_PREFIX): tensor.detach()
        for name, tensor in loaded.exported.state_dict.items()
        if name.startswith(STATE_PREFIX)
    }
    return TorchRunner(loaded.exported.module(), interface, state)
