"""What is asked of the compiler's process, as the files of one folder."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from flowopt.lowering.tvm.loop import LoopNames
from flowopt.runtime.relax_metadata import StoredTensor

MODULE_FILE = "module.json"
PARAMETERS_FILE = "parameters.data"
LIBRARY_FILE = "model.so"
WEIGHTS_FILE = "weights.data"
_JOB_FILE = "job.json"

Kind = Literal["scheduled", "plain"]
Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class Job:
    """``module.json`` and ``parameters.data`` are in the folder, ``model.so`` and ``weights.data`` are to be made.

    Attributes:
        kind: ``scheduled``, or ``plain``: one unscheduled kernel for each operator.
        device: that the library runs on.
        arch: the processor as LLVM names it, None: this one; or the CUDA architecture.
        parameters: by function of the module, where in ``parameters.data`` the tensors behind its inputs lie.
        state: likewise the stored values of inputs, by the input's name.
        loop: of a sampler, how its functions hang together; None: the module has ``main``.
        version: of flowopt.
        interface: of the model.
    """

    kind: Kind
    device: Device
    arch: str | None
    parameters: Mapping[str, Sequence[StoredTensor]]
    state: Mapping[str, StoredTensor]
    loop: LoopNames | None
    version: str
    interface: Mapping[str, Any]

    def save(self, folder: Path) -> None:
        """Write it beside its files."""
        (folder / _JOB_FILE).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @staticmethod
    def read(folder: Path) -> "Job":
        """What ``save`` wrote."""
        values = json.loads((folder / _JOB_FILE).read_text(encoding="utf-8"))
        values["parameters"] = {name: [_stored(one) for one in table] for name, table in values["parameters"].items()}
        values["state"] = {name: _stored(one) for name, one in values["state"].items()}
        values["loop"] = LoopNames(**values["loop"]) if values["loop"] is not None else None
        return Job(**values)


def _stored(entry: Mapping[str, Any]) -> StoredTensor:
    return StoredTensor(entry["offset"], entry["dtype"], tuple(entry["shape"]))
