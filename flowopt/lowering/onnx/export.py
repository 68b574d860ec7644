"""Lower a program to ONNX.

The exporter's own ``optimize=True`` would fold batch norms and fuse patterns behind the passes' back, and takes two
thirds of its time. Here it stays off; what is needed of it is in ``clean``.
"""

import importlib.metadata
import json
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx

from flowopt.errors import UserError
from flowopt.ir.metadata import source_line
from flowopt.ir.quiet import quiet
from flowopt.lowering.exported import exporter_input
from flowopt.lowering.onnx.clean import clean
from flowopt.lowering.onnx.fuse import fuse
from flowopt.lowering.onnx.grouped_products import grouped_translations
from flowopt.lowering.onnx.metadata import replace_metadata
from flowopt.lowering.onnx.names import name_interface, separate_outputs
from flowopt.lowering.onnx.weights import move_weights
from flowopt.lowering.staging import Staging
from flowopt.program.program import Input, Output, Program
from flowopt.runtime.interface import interface_of
from flowopt.runtime.layout import INTERFACE_KEY, OUTPUT_NAMES_KEY, VERSION_KEY, WEIGHTS_KEY


@dataclass(frozen=True, slots=True)
class LoweredOnnx:
    """A staged model file, the names of its weight files (already in place), and how often it uses each operator."""

    model: Path
    weights: tuple[str, ...]
    op_census: dict[str, int]


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
    _require_real(program)
    staging.require_space(program.parameter_bytes)
    model = _exported(program, opset)
    with quiet():  # it reports each constant that it does not fold, and goes on
        clean(model)
        if fuses:
            fuse(model)
    separate_outputs(model)
    onnx_names = name_interface(model, program)
    replace_metadata(model)
    defaults = {i.name: program.tensors[i.state] for i in program.inputs if i.state is not None}
    weights = move_weights(model, defaults, staging)
    model.producer_name, model.producer_version = "flowopt", _version()
    model.metadata_props.clear()
    model.metadata_props[VERSION_KEY] = _version()
    model.metadata_props[INTERFACE_KEY] = json.dumps(interface_of(program), sort_keys=True)
    if weights:
        model.metadata_props[WEIGHTS_KEY] = staging.digest(weights[0])
    names = tuple(o.name for o in program.outputs)
    if onnx_names != names:
        model.metadata_props[OUTPUT_NAMES_KEY] = json.dumps(names)
    return LoweredOnnx(_written(model, staging), weights, _census(model))


def _require_real(program: Program) -> None:
    interface: tuple[Input | Output, ...] = (*program.inputs, *program.outputs)
    for one in interface:
        if one.dtype.is_complex:
            raise UserError(
                f"{one.name!r} is {one.dtype}, and ONNX runtimes take no complex tensors",
                hint="wrap the model so that it takes and returns torch.view_as_real of it, or use --target torch",
            )


def _exported(program: Program, opset: int) -> Any:
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


def _written(model: Any, staging: Staging) -> Path:
    import onnx_ir

    path = staging.temporary(".onnx")
    proto = onnx_ir.serde.serialize_model(model)
    path.write_bytes(proto.SerializeToString(deterministic=True))
    return path


def _census(model: Any) -> dict[str, int]:
    counts = Counter(f"{n.domain}::{n.op_type}" if n.domain else n.op_type for n in model.graph.all_nodes())
    return dict(sorted(counts.items()))


def _version() -> str:
    try:
        return importlib.metadata.version("flowopt")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
