"""Lower a program to a torch archive (``.pt2``)."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from flowopt.errors import UserError
from flowopt.ir.quiet import quiet
from flowopt.lowering.exported import exporter_input
from flowopt.lowering.sound_sampler import require_sound
from flowopt.lowering.staging import Staging
from flowopt.program.program import Program
from flowopt.program.sampler_program import SamplerProgram
from flowopt.program.unrolled import unrolled
from flowopt.runtime.interface import interface_of
from flowopt.runtime.layout import INTERFACE_FILE, STATE_PREFIX

# flowopt's own reader, which opens an archive unless it is trusted, needs about a hundredth of a second per node.
_MOST_NODES = 10_000


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


def lower_sampler_to_torch(sampler: SamplerProgram, staging: Staging) -> LoweredTorch:
    """Write a sampler as a torch archive. torch.export has no loop: the step is copied as often as it runs.

    Raises:
        UserError: more than 10,000 nodes would be written, or a part keeps state of its own.
        InternalError: the parts do not fit together.
    """
    require_sound(sampler)
    nodes = len(list(sampler.step.graph.nodes)) * sampler.loop.steps
    if nodes > _MOST_NODES:
        raise UserError(
            f"{sampler.loop.steps} steps would be {nodes:,} nodes of a torch archive, which has no loop",
            why=f"archives of more than {_MOST_NODES:,} nodes take minutes to open",
            hint="use --target cpu, whose files have loops, or fewer steps",
        )
    return lower_to_torch(unrolled(sampler), staging)
