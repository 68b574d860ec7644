"""Translate a program by torch's exporter, and say where it cannot.

The exporter's own ``optimize=True`` would fold batch norms and fuse patterns behind the passes' back, and takes two
thirds of its time. Here it stays off; what is needed of it is in ``clean``.
"""

import traceback
from typing import Any

import torch
from torch import fx

from flowopt.errors import UserError
from flowopt.ir.metadata import source_line
from flowopt.ir.quiet import quiet
from flowopt.lowering.exported import exporter_input
from flowopt.lowering.onnx.grouped_products import grouped_translations
from flowopt.program.program import Input, Output, Program


def translated(program: Program, opset: int) -> Any:
    """An ``onnx_ir.Model`` as the exporter builds it: unnamed, not cleaned.

    Raises:
        UserError: an operator or dtype that ONNX has no form for; with the user's source line.
    """
    _require_real(program)
    exported = exporter_input(program)
    try:
        # With autograd on, torch traces attention as another kernel than the captured one, whose layout breaks views.
        with quiet(), torch.no_grad():
            result = torch.onnx.export(
                exported,
                dynamo=True,
                opset_version=opset,
                optimize=False,
                verbose=False,
                external_data=True,
                custom_translation_table=grouped_translations(exported.graph),
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise _refusal(program, error) from error
    assert result is not None, "with dynamo=True there is a program"
    return result.model


def _require_real(program: Program) -> None:
    interface: tuple[Input | Output, ...] = (*program.inputs, *program.outputs)
    for one in interface:
        if one.dtype.is_complex:
            raise UserError(
                f"{one.name!r} is {one.dtype}, and ONNX runtimes take no complex tensors",
                hint="wrap the model so that it takes and returns torch.view_as_real of it, or use --target torch",
            )


def _refusal(program: Program, error: BaseException) -> UserError:
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
    node = _failing_node(error)
    reason = next((line for line in str(root).splitlines() if line.strip()), type(root).__name__)
    if node is None:
        return UserError("torch's exporter cannot convert the program to ONNX", why=reason)
    where = source_line(node)
    return UserError(
        f"ONNX has no form of {node.target} (node {node.name}){f' at {where}' if where else ''}",
        why=reason,
        hint="write it with other operators, or use --target torch",
    )


def _failing_node(error: BaseException | None) -> fx.Node | None:
    """The node being translated: the exporter keeps it only in a local variable and in prose."""
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            node = frame.f_locals.get("node")
            if isinstance(node, fx.Node) and node.op == "call_function":
                return node
        error = error.__cause__
    return None
