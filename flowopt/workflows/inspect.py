"""Inspect a model: operators, tensors, cost, interface, and how often passes would fire."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from torch import Tensor, fx

from flowopt.analysis.activation_bytes import activation_bytes
from flowopt.analysis.flops import flops
from flowopt.analysis.streams import streams
from flowopt.ir.constants import is_parameter_only
from flowopt.ir.text import operator_census, operator_name
from flowopt.pipeline.presets import DEFAULT_PRESET
from flowopt.pipeline.runner import run_passes
from flowopt.program.program import Program
from flowopt.report.inspection import ModelInspection, PassFindings, StoredTensors, StreamFindings
from flowopt.runtime.interface import interface_of
from flowopt.workflows.pipelines import Pipeline

# Written norms count as norms once they are one operator.
_SPELLINGS: Final = "canonicalize-aten,eliminate-no-ops,fold-constants,recognize-rms-norm,recognize-layer-norm"


def inspect_model(
    program: Program, *, passes: str | Path | Pipeline = DEFAULT_PRESET, with_streams: bool = False
) -> ModelInspection:
    """Count what is in ``program``: nothing is run, verified or written.

    Args:
        program: never changed.
        passes: preset, text form, a TOML file, or a Pipeline; run on a copy, for what they would find.
        with_streams: find residual streams too.

    Raises:
        UserError: an unknown pass.
    """
    pipeline = passes if isinstance(passes, Pipeline) else Pipeline(passes)
    run = run_passes(program, pipeline.passes)
    sizes = {dim.name: dim.traced for dim in program.dims}
    return ModelInspection(
        source=program.provenance.source,
        source_sha256=program.provenance.sha256,
        trust=program.provenance.trust,
        torch_version=program.provenance.torch_version,
        interface=interface_of(program),
        captured=sizes,
        state=tuple(one.name for one in program.inputs if one.state is not None),
        census=dict(operator_census(program.graph).most_common()),
        stored=stored_by_dtype(_read_tensors(program)),
        parameter_bytes=program.parameter_bytes,
        flops=flops(program, sizes),
        activation_bytes=activation_bytes(program, sizes),
        pipeline=pipeline.text(),
        passes=tuple(PassFindings(r.name, r.exactness, len(r.applied), r.refusal_counts) for r in run.records),
        streams=_streams(program) if with_streams else None,
    )


def _streams(program: Program) -> tuple[StreamFindings, ...]:
    spelled = run_passes(program, Pipeline(_SPELLINGS).passes).program
    return tuple(
        StreamFindings(
            first=next(iter(stream.axes)).name,
            features=stream.size,
            placement=stream.placement.value,
            is_parallel=stream.is_parallel,
            additions=len(stream.additions),
            norms=_counted(reader.node for reader in stream.norms),
            writers=_counted(stream.writers),
            taps=tuple(dict.fromkeys(tap.node.name for tap in stream.taps)),
        )
        for stream in streams(spelled.graph)
    )


def _counted(nodes: Iterable[fx.Node]) -> dict[str, int]:
    return dict(Counter(_kind(node) for node in nodes).most_common())


def _kind(node: fx.Node) -> str:
    if node.op == "placeholder":
        return "input"
    return "stored" if is_parameter_only(node) else operator_name(node)


def stored_by_dtype(tensors: Iterable[Tensor]) -> tuple[StoredTensors, ...]:
    """Tensors counted by dtype, largest first. Of those that share memory, the memory is counted."""
    groups: dict[int, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.untyped_storage().data_ptr(), []).append(tensor)
    totals: dict[str, list[int]] = {}
    for group in groups.values():
        storage, itemsize = group[0].untyped_storage().nbytes(), group[0].itemsize
        views = {(t.storage_offset(), t.shape, t.stride()): t.numel() for t in group}
        total = totals.setdefault(str(group[0].dtype).removeprefix("torch."), [0, 0, 0])
        for at, amount in enumerate((1, min(sum(views.values()), storage // itemsize), storage)):
            total[at] += amount
    rows = (StoredTensors(dtype, *counts) for dtype, counts in totals.items())
    return tuple(sorted(rows, key=lambda row: (-row.bytes, row.dtype)))


def _read_tensors(program: Program) -> Iterator[Tensor]:
    """Those that the graph reads, and the defaults of state."""
    names = {str(n.target) for n in program.graph.nodes if n.op == "get_attr"}
    names |= {one.state for one in program.inputs if one.state is not None}
    yield from (program.tensors[name] for name in sorted(names))
