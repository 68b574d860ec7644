"""Lower a program, or a sampler, to a library of TVM's and its weights."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from flowopt.errors import UserError
from flowopt.ir.loop_spec import Form
from flowopt.lowering.sound_sampler import require_sound
from flowopt.lowering.staging import Staging
from flowopt.lowering.tvm.compiler import run_compiler
from flowopt.lowering.tvm.imported import imported
from flowopt.lowering.tvm.job import LIBRARY_FILE, MODULE_FILE, PARAMETERS_FILE, WEIGHTS_FILE, Device, Job, Kind
from flowopt.lowering.tvm.loop import EPILOGUE, MAIN, PROLOGUE, ROWS, STEP, LoopNames
from flowopt.lowering.tvm.parameters import chunks_of, table_of
from flowopt.lowering.tvm.toolchain import require_toolchain
from flowopt.program.interface import Interface
from flowopt.program.program import Program
from flowopt.program.sampler_program import SamplerProgram
from flowopt.program.unrolled import unrolled
from flowopt.runtime.interface import described_interface

_CHUNK_BYTES = 1 << 24
# Each copy is compiled; a loop of so few steps costs more than it saves.
_MOST_COPIES = 4
_FORMS: tuple[Form, ...] = ("auto", "function", "copies")


@dataclass(frozen=True, slots=True)
class LoweredTvm:
    """A staged library; ``runtime.relax_module.open_relax`` runs it beside its weights.

    Attributes:
        model: the library.
        census: kernel names to the number of their calls in the code; a loop's count once.
        form: how the loop of a sampler is written; empty: there is none.
    """

    model: Path
    census: Mapping[str, int] = field(default_factory=dict)
    form: str = ""


@dataclass(frozen=True, slots=True)
class Compilation:
    """What to compile for.

    Attributes:
        device: ``cpu`` (LLVM), or ``cuda``, for which no GPU is needed.
        arch: on the CPU the processor as LLVM names it, None: this one; on CUDA the architecture, such as ``sm_90``.
        kind: ``scheduled``: flowopt's kernels, fused; ``plain``: TVM's own, one for each operator and slow, which
            tells the import's errors from the compiler's.
    """

    device: Device = "cpu"
    arch: str | None = None
    kind: Kind = "scheduled"


def lower_to_tvm(program: Program, staging: Staging, wanted: Compilation) -> LoweredTvm:
    """Compile a program: the same bytes for the same program, processor and versions, wherever they are written.

    Args:
        program: what to compile; its free dimensions stay free.
        staging: where library and weights go. The library names its weights.
        wanted: the device, and which kernels.

    Raises:
        UserError: an operator that TVM has no form for, with the user's source line; an unknown architecture.
        MissingDependency: apache-tvm, a C++ compiler that links, or nvcc is not installed.
        BackendFailed: the compiler raised or crashed.
        CannotWrite: the disk is full.
    """
    return _lowered({MAIN: program}, {}, None, program.interface, staging, wanted)


def lower_sampler_to_tvm(
    sampler: SamplerProgram, staging: Staging, wanted: Compilation, form: Form = "auto"
) -> LoweredTvm:
    """Compile a sampler. Relax has no loop: the step is written out, or a function that calls itself runs it.

    Args:
        sampler: what to compile.
        staging: where library and weights go.
        wanted: the device, and which kernels.
        form: ``copies``; ``function``; ``auto`` takes copies for up to 4 steps, unless the loop asks for a form.

    Raises:
        UserError: another form, or as for ``lower_to_tvm``.
        InternalError: the parts do not fit together.
    """
    require_sound(sampler)
    asked = sampler.loop.form if form == "auto" else form
    if asked not in _FORMS:
        raise UserError(f"--form {asked} is a form of ONNX", hint=f"TVM's are {', '.join(_FORMS)}")
    is_short = sampler.loop.steps <= _MOST_COPIES
    if asked == "copies" or (asked == "auto" and is_short):
        whole = unrolled(sampler)
        lowered = lower_to_tvm(whole, staging, wanted)
        return LoweredTvm(lowered.model, lowered.census, "copies")
    loop = sampler.loop
    names = LoopNames(
        steps=loop.steps,
        inputs=[i.name for i in sampler.prologue.inputs],
        prologue=[o.name for o in sampler.prologue.outputs],
        step=[i.name for i in sampler.step.inputs],
        state=list(loop.state),
        tables=list(loop.tables),
        sequences=list(loop.sequences),
        epilogue=[i.name for i in sampler.epilogue.inputs],
    )
    parts = {PROLOGUE: sampler.prologue, STEP: sampler.step, EPILOGUE: sampler.epilogue}
    lowered = _lowered(parts, {ROWS: list(loop.tables.values())}, names, sampler.interface, staging, wanted)
    return LoweredTvm(lowered.model, lowered.census, "function")


def _lowered(
    programs: Mapping[str, Program],
    tables: Mapping[str, list[Tensor]],
    loop: LoopNames | None,
    interface: Interface,
    staging: Staging,
    wanted: Compilation,
) -> LoweredTvm:
    tvm = require_toolchain(wanted.device, wanted.arch)
    staging.require_space(2 * sum(program.parameter_bytes for program in programs.values()))
    module = tvm.IRModule()
    tensors = dict(tables)
    states: dict[str, Tensor] = {}
    for name, program in programs.items():
        found = imported(program)
        module[name] = found.module[MAIN].with_attr("global_symbol", name)
        tensors[name] = [program.tensors[one] for one in found.parameters]
        states |= {i.name: program.tensors[i.state] for i in program.inputs if i.state is not None}
    everything = [*(one for part in tensors.values() for one in part), *states.values()]
    table = table_of(everything)
    placed = iter(table)
    job = Job(
        kind=wanted.kind,
        device=wanted.device,
        arch=wanted.arch,
        parameters={name: [next(placed) for _ in part] for name, part in tensors.items()},
        state={name: next(placed) for name in states},
        loop=loop,
        version=version("flowopt"),
        interface=described_interface(interface),
    )
    with tempfile.TemporaryDirectory(prefix="flowopt-tvm-", ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch)
        (folder / MODULE_FILE).write_text(tvm.ir.save_json(module), encoding="utf-8")
        with (folder / PARAMETERS_FILE).open("wb") as file:
            for piece in chunks_of(everything, table):
                file.write(piece)
        made: dict[str, Any] = run_compiler(folder, job)
        if made["weights"]:
            staging.weights(_pieces(folder / WEIGHTS_FILE))
        model = staging.temporary(".so")
        shutil.copyfile(folder / LIBRARY_FILE, model)
    return LoweredTvm(model, made["census"])


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_CHUNK_BYTES):
            yield piece
