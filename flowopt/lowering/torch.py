"""Lower a program to a torch archive (``.pt2``)."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from flowopt.ir.quiet import quiet
from flowopt.lowering.exported import exporter_input
from flowopt.lowering.staging import Staging
from flowopt.program.program import Program
from flowopt.runtime.interface import interface_of
from flowopt.runtime.layout import INTERFACE_FILE, STATE_PREFIX


@dataclass(frozen=True, slots=True)
class LoweredTorch:
    """A staged ``.pt2``; ``runtime.torch_module.open_exported`` runs it."""

    model: Path


def lower_to_torch(program: Program, staging: Staging) -> LoweredTorch:
    """Write the program as a torch archive: the same bytes for the same program, wherever it is written.

    State lies beside the parameters under ``flowopt.state.<input>``, the interface in an extra file.
    """
    staging.require_space(program.parameter_bytes)
    exported = exporter_input(program)
    for one in program.inputs:
        if one.state is not None:
            exported.state_dict[STATE_PREFIX + one.name] = program.tensors[one.state]
    interface = json.dumps(interface_of(program), sort_keys=True)
    path = staging.temporary(".pt2")
    # By path, torch would store the file's name as the archive's root folder; of a stream it knows no name.
    with quiet(), path.open("wb") as file:
        torch.export.save(exported, file, extra_files={INTERFACE_FILE: interface})
    return LoweredTorch(path)
