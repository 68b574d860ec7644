"""Write an ONNX model that is complete but for its weights' place and its metadata."""

import importlib.metadata
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from flowopt.ir.loop_spec import Form
from flowopt.lowering.onnx.weights import move_weights
from flowopt.lowering.staging import Staging
from flowopt.program.interface import Interface
from flowopt.runtime.interface import described_interface
from flowopt.runtime.layout import INTERFACE_KEY, OUTPUT_NAMES_KEY, VERSION_KEY, WEIGHTS_KEY


@dataclass(frozen=True, slots=True)
class LoweredOnnx:
    """A staged model file.

    Attributes:
        model: the file.
        weights: names of its weight files, already in place.
        op_census: how often it uses each operator.
        form: of a sampler, how its loop is written.
    """

    model: Path
    weights: tuple[str, ...]
    op_census: dict[str, int]
    form: Form | None = None


def written(
    model: Any, interface: Interface, onnx_names: tuple[str, ...], defaults: Mapping[str, Tensor], staging: Staging
) -> LoweredOnnx:
    """Stream the weights, record what the model takes and returns, and write it.

    Args:
        model: an ``onnx_ir.Model``.
        interface: of the whole.
        onnx_names: the outputs' names in the file.
        defaults: input name to the value that it takes when the caller gives none.
        staging: of the artifact's folder.
    """
    weights = move_weights(model, defaults, staging)
    model.producer_name, model.producer_version = "flowopt", _version()
    model.metadata_props.clear()
    model.metadata_props[VERSION_KEY] = _version()
    model.metadata_props[INTERFACE_KEY] = json.dumps(described_interface(interface), sort_keys=True)
    if weights:
        model.metadata_props[WEIGHTS_KEY] = staging.digest(weights[0])
    names = tuple(o.name for o in interface.outputs)
    if onnx_names != names:
        model.metadata_props[OUTPUT_NAMES_KEY] = json.dumps(names)
    return LoweredOnnx(_file(model, staging), weights, _census(model))


def _file(model: Any, staging: Staging) -> Path:
    import onnx_ir

    path = staging.temporary(".onnx")
    proto = onnx_ir.serde.serialize_model(model)
    path.write_bytes(proto.SerializeToString(deterministic=True))
    return path


def _census(model: Any) -> dict[str, int]:
    """In all graphs and functions; the nodes of a function once, however often it is called."""
    graphs = (model.graph, *model.functions.values())
    nodes = (node for graph in graphs for node in graph.all_nodes())
    counts = Counter(f"{n.domain}::{n.op_type}" if n.domain else n.op_type for n in nodes)
    return dict(sorted(counts.items()))


def _version() -> str:
    try:
        return importlib.metadata.version("flowopt")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
