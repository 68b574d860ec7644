"""Lower a program to ONNX."""

from typing import Any

from flowopt.ir.quiet import quiet
from flowopt.lowering.onnx.clean import clean
from flowopt.lowering.onnx.fuse import fuse
from flowopt.lowering.onnx.metadata import replace_metadata
from flowopt.lowering.onnx.names import name_interface, separate_outputs
from flowopt.lowering.onnx.translate import translated
from flowopt.lowering.onnx.written import LoweredOnnx, written
from flowopt.lowering.staging import Staging
from flowopt.program.program import Program

__all__ = ["LoweredOnnx", "lower_to_onnx", "onnx_model"]


def lower_to_onnx(program: Program, staging: Staging, *, opset: int = 23, fuses: bool = True) -> LoweredOnnx:
    """Write a program as ONNX: the same bytes for the same program, wherever it is written.

    Inputs, outputs and free dimensions have the program's names. State is an input with a default. Weights are
    streamed to one content-addressed file, tied ones once. Each node's ``flowopt.node`` names the graph node that it
    came from. An output that has an input's name, which ONNX forbids, is called otherwise in the file;
    ``OnnxRunner`` restores its name.

    Args:
        program: what to write.
        staging: of the artifact's folder.
        opset: of ONNX's own operators.
        fuses: use operators that stand for several of torch's.

    Raises:
        UserError: an operator or dtype that ONNX has no form for; with the user's source line.
        CannotWrite: the disk is full.
    """
    staging.require_space(program.parameter_bytes)
    model, onnx_names = onnx_model(program, opset=opset, fuses=fuses)
    defaults = {i.name: program.tensors[i.state] for i in program.inputs if i.state is not None}
    return written(model, program.interface, onnx_names, defaults, staging)


def onnx_model(program: Program, *, opset: int, fuses: bool) -> tuple[Any, tuple[str, ...]]:
    """A program as an ``onnx_ir.Model`` under its own names, whose weights are still the program's tensors.

    Returns:
        The model, and the outputs' names in it.

    Raises:
        UserError: an operator or dtype that ONNX has no form for; with the user's source line.
    """
    model = translated(program, opset)
    with quiet():  # it reports each constant that it does not fold, and goes on
        clean(model)
        if fuses:
            fuse(model)
    separate_outputs(model)
    onnx_names = name_interface(model, program.interface, {d.symbol: d.name for d in program.dims})
    replace_metadata(model)
    return model, onnx_names
