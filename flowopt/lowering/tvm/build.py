"""What runs in the compiler's process: a Relax module and its parameters in, a library and its weights out."""

import json
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from flowopt.lowering.tvm.job import LIBRARY_FILE, MODULE_FILE, PARAMETERS_FILE, WEIGHTS_FILE, Job
from flowopt.lowering.tvm.loop import MAIN, PARTS, ROWS, joined, with_rows
from flowopt.lowering.tvm.weights import write_arrays
from flowopt.runtime.processor import instruction_sets
from flowopt.runtime.relax_library import tensors_of
from flowopt.runtime.relax_metadata import LibraryMetadata

_METADATA_FUNCTION = "flowopt_metadata"
_TRANSFORM = "_transform_params"
# Neither debug names nor build identifiers: the same model gives the same bytes.
_LINKING = ("-shared", "-fPIC", "-Wl,--build-id=none", "-Wl,-s")


@dataclass(frozen=True, slots=True)
class _Backend:
    """What compiles for the job's device: schedules, and the rest of the way to machine code."""

    job: Job
    processor: str

    @property
    def arch(self) -> str:
        return self.job.arch if self.job.device == "cuda" and self.job.arch else self.processor

    def scheduled(self, module: Any) -> Any:
        if self.job.device == "cuda":
            return module
        from flowopt.lowering.tvm.cpu.pipeline import plain_for_cpu, scheduled_for_cpu

        kernels = plain_for_cpu if self.job.kind == "plain" else scheduled_for_cpu
        return kernels(module, _llvm_target(self.processor))

    def compiled(self, module: Any) -> Any:
        if self.job.device == "cuda":
            from flowopt.lowering.tvm.cuda.pipeline import compiled_for_cuda

            return compiled_for_cuda(module, self.arch)
        return _compiled_for_cpu(module, self.processor)


def main() -> NoReturn:
    """Run the job of the current folder, and answer on standard output with one line of JSON."""
    # What compilers print must not end up in the answer.
    answer = os.dup(1)
    os.dup2(2, 1)
    # TVM imports it wherever it is installed, which takes longer than compiling a small model.
    sys.modules["torch"] = None  # type: ignore[assignment]  # the spelling of "not installed"
    line = json.dumps(build(Path.cwd()))
    with open(answer, "w", encoding="utf-8") as file:
        file.write(line + "\n")
    # Destructors of compilers can crash, and the answer is given.
    os._exit(0)


def build(folder: Path) -> dict[str, Any]:
    """Compile the job of a folder.

    Returns:
        ``census``: kernel names to the number of their calls; ``weights``: whether ``weights.data`` holds anything.
    """
    import tvm

    job = Job.read(folder)
    mapped = _mapped(folder / PARAMETERS_FILE)
    parameters = {name: tensors_of(tvm, mapped, table, tvm.cpu()) for name, table in job.parameters.items()}
    stored = tvm.ir.load_json((folder / MODULE_FILE).read_text(encoding="utf-8"))
    # What says that a name has no type yet is known by its identity, which a file does not keep.
    module = tvm.IRModule({_named(tvm, gv, function): function for gv, function in stored.functions.items()})
    if job.loop is not None:
        module = with_rows(module, job.loop, parameters[ROWS])
    is_native = job.arch is None or job.device == "cuda"
    backend = _Backend(job, str(tvm.target.codegen.llvm_get_system_cpu()) if is_native else str(job.arch))
    module = backend.scheduled(module)
    module, parameters = _prepared(tvm, module, parameters)
    census = _census(tvm, module)
    if job.loop is not None:
        module = joined(module, job.loop, {part: len(parameters[part]) for part in PARTS})
    flat = [tensor for part in (PARTS if job.loop is not None else (MAIN,)) for tensor in parameters[part]]
    state = tensors_of(tvm, mapped, list(job.state.values()), tvm.cpu())
    table, name = write_arrays([tensor.numpy() for tensor in (*flat, *state)], folder / WEIGHTS_FILE)
    metadata = LibraryMetadata(
        version=job.version,
        interface=job.interface,
        device=job.device,
        arch=backend.arch,
        # Beside kernels for a GPU, the host's code is for any processor of its kind.
        features=() if job.device == "cuda" else tuple(sorted(instruction_sets(tvm, backend.processor))),
        weights=name,
        tensors=tuple(table),
        parameters=len(flat),
        state={one: len(flat) + at for at, one in enumerate(job.state)},
        fresh=_fresh_outputs(tvm, module[MAIN]),
    )
    whole = _with_metadata(tvm, tvm.relax.transform.BundleModelParams()(module), metadata.text())
    backend.compiled(whole).export_library(str(folder / LIBRARY_FILE), options=list(_LINKING))
    return {"census": dict(sorted(census.items())), "weights": name is not None}


def _named(tvm: Any, variable: Any, function: Any) -> Any:
    return tvm.ir.GlobalVar(variable.name_hint) if isinstance(function, tvm.relax.Function) else variable


def _llvm_target(processor: str) -> Any:
    import tvm

    return tvm.target.Target({"kind": "llvm", "mcpu": processor, "num-cores": os.cpu_count() or 1})


def _compiled_for_cpu(module: Any, processor: str) -> Any:
    from flowopt.lowering.tvm.cpu.pipeline import compiled_for_cpu

    return compiled_for_cpu(module, _llvm_target(processor))


def _prepared(tvm: Any, module: Any, parameters: Mapping[str, Sequence[Any]]) -> tuple[Any, dict[str, list[Any]]]:
    """Run what depends on parameters alone, such as packing them, once: the module without it, and its results."""
    names = {gv.name_hint for gv in module.get_global_vars()}
    transforms = [name + _TRANSFORM for name in parameters if name + _TRANSFORM in names]
    if not transforms:
        return module, {name: list(values) for name, values in parameters.items()}
    only = tvm.relax.transform.DeadCodeElimination
    # It runs on this machine, whatever the library is for.
    here = str(tvm.target.codegen.llvm_get_system_cpu())
    machine = tvm.relax.VirtualMachine(_compiled_for_cpu(only(transforms)(module), here), tvm.cpu())
    made = {
        name: list(machine[name + _TRANSFORM](list(values)) if name + _TRANSFORM in transforms else values)
        for name, values in parameters.items()
    }
    kept = tvm.IRModule({gv: f for gv, f in module.functions.items() if gv.name_hint not in transforms})
    return only(list(parameters))(kept), made


def _mapped(path: Path) -> np.ndarray:
    return np.memmap(path, dtype=np.uint8, mode="c") if path.stat().st_size else np.zeros(0, np.uint8)


def _census(tvm: Any, module: Any) -> Mapping[str, int]:
    """How often each kernel is called, by its name; of a module without kernels yet, each operator."""
    found: Counter[str] = Counter()

    def visit(expression: Any) -> None:
        if isinstance(expression, tvm.relax.Call) and isinstance(expression.op, tvm.ir.Op):
            is_kernel = expression.op.name == "relax.call_tir"
            found[str(expression.args[0].name_hint if is_kernel else expression.op.name)] += 1

    for function in module.functions.values():
        if isinstance(function, tvm.relax.Function):
            tvm.relax.analysis.post_order_visit(function, visit)
    return found


def _fresh_outputs(tvm: Any, function: Any) -> frozenset[int]:
    """Which outputs of a function are results of kernels: not its arguments, constants, or views of another value."""
    bindings = {binding.var: binding.value for block in function.body.blocks for binding in block.bindings}

    def made(value: Any) -> Any:
        while isinstance(value, tvm.relax.Var) and value in bindings:
            value = bindings[value]
        return value

    returned = made(function.body.body)
    if not isinstance(returned, tvm.relax.Tuple):
        return frozenset()
    values = [made(field) for field in returned.fields]
    calls = (isinstance(one, tvm.relax.Call) and one.op == tvm.ir.Op.get("relax.call_tir") for one in values)
    return frozenset(
        at
        for at, (value, is_kernel) in enumerate(zip(values, calls, strict=True))
        if is_kernel and sum(value is other for other in values) == 1
    )


def _with_metadata(tvm: Any, module: Any, text: str) -> Any:
    builder = tvm.relax.BlockBuilder(module)
    with builder.function(_METADATA_FUNCTION, []):
        builder.emit_func_output(tvm.ir.StringImm(text))
    return builder.get()


if __name__ == "__main__":
    sys.exit(main())
