"""Lower a sampler to one ONNX file: prologue, loop and epilogue, the step exported once."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

from flowopt.errors import UserError
from flowopt.ir.loop_spec import FORMS, Form, LoopSpec
from flowopt.lowering.onnx.export import onnx_model
from flowopt.lowering.onnx.loops.body import Body
from flowopt.lowering.onnx.loops.copies import write_copies
from flowopt.lowering.onnx.loops.function import write_function
from flowopt.lowering.onnx.loops.loop import write_loop
from flowopt.lowering.onnx.loops.outer import Outer
from flowopt.lowering.onnx.loops.scan import write_scan
from flowopt.lowering.onnx.metadata import NODE_KEY
from flowopt.lowering.onnx.names import name_interface
from flowopt.lowering.onnx.written import LoweredOnnx, written
from flowopt.lowering.sound_sampler import require_sound
from flowopt.lowering.staging import Staging
from flowopt.program.program import Program
from flowopt.program.sampler_program import SamplerProgram

Device = Literal["cpu", "cuda"]

_WRITERS: Mapping[Form, Callable[[Outer, Body], list[Any]]] = {
    "scan": write_scan,
    "loop": write_loop,
    "function": write_function,
    "copies": write_copies,
}
# A loop of so few steps costs more than it saves.
_MOST_COPIES = 4
# ONNX Runtime optimises every call by itself.
_MOST_CALLS = 100


def lower_sampler_to_onnx(
    program: SamplerProgram,
    staging: Staging,
    *,
    form: Form = "auto",
    device: Device = "cpu",
    opset: int = 23,
    fuses: bool = True,
) -> LoweredOnnx:
    """Write a sampler as ONNX: the same bytes for the same sampler, wherever it is written.

    Inputs, outputs and free dimensions have the sampler's names: a dimension's name means one size in all parts.
    Weights are streamed to one content-addressed file, each once, however often the step runs. Each node's
    ``flowopt.node`` names the part and the graph node that it came from (``step/linear``).

    Args:
        program: what to write.
        staging: of the artifact's folder.
        form: how the loop is written; ``auto`` decides by ``chosen_form``, unless the loop itself asks for one.
        device: what it will run on.
        opset: of ONNX's own operators.
        fuses: use operators that stand for several of torch's.

    Returns:
        The file; ``form`` is the one that was taken.

    Raises:
        UserError: an operator or dtype that ONNX has no form for, with the user's source line; a part that keeps
            state of its own; an unknown form.
        CannotWrite: the disk is full.
    """
    if form not in FORMS:
        raise UserError(f"no form {form!r} of a loop", hint=f"use one of {', '.join(FORMS)}")
    require_sound(program)
    staging.require_space(program.parameter_bytes)
    taken = chosen_form(program.loop, program.loop.form if form == "auto" else form, device)
    model = _joined(program, taken, opset=opset, fuses=fuses)
    # What the prologue computes and no step reads; shapes that the forms did not need.
    from onnx_ir.passes import common

    common.RemoveUnusedNodesPass()(model)
    onnx_names = name_interface(model, program.interface, {})
    return replace(written(model, program.interface, onnx_names, {}, staging), form=taken)


def chosen_form(loop: LoopSpec, form: Form, device: Device) -> Form:
    """The form that a loop is written in.

    ``auto`` takes copies for up to 4 steps. For more it takes Scan on the CPU: as fast as copies there, loaded up to a
    hundred times faster, and the smallest file. On CUDA the host drives a loop, and a graph with one cannot be
    captured as a CUDA graph: there it takes calls of a function, which ONNX Runtime writes out when it loads the
    file, up to 100 steps; and Scan for more, since loading takes longer with every call.
    """
    if form != "auto":
        return form
    if loop.steps <= _MOST_COPIES:
        return "copies"
    return "function" if device == "cuda" and loop.steps <= _MOST_CALLS else "scan"


def _joined(program: SamplerProgram, form: Form, *, opset: int, fuses: bool) -> Any:
    def part(name: str, one: Program) -> Any:
        model, _ = onnx_model(one, opset=opset, fuses=fuses)
        for node in model.graph.all_nodes():
            node.name = f"{name}/{node.name}"
            if NODE_KEY in node.metadata_props:
                node.metadata_props[NODE_KEY] = f"{name}/{node.metadata_props[NODE_KEY]}"
        return model

    outer = Outer(part("prologue", program.prologue), [o.name for o in program.prologue.outputs])
    step = part("step", program.step)
    outer.import_opsets(step.graph.opset_imports)
    named = zip((i.name for i in program.step.inputs), list(step.graph.inputs), strict=True)
    inputs = {name: value for name, value in named if value.uses() or name in program.loop.state}
    last = _WRITERS[form](outer, Body(step.graph, inputs, program.loop))
    outer.values |= zip(program.loop.state, last, strict=True)
    epilogue = part("epilogue", program.epilogue)
    outer.import_opsets(epilogue.graph.opset_imports)
    outer.finish(epilogue.graph, [i.name for i in program.epilogue.inputs])
    return outer.model
