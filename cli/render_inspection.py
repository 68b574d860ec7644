"""What is in a model or in an artifact, on the screen."""

from collections.abc import Mapping, Sequence
from typing import Any

from flowopt.cli.render import Screen
from flowopt.cli.summary import adaptation_lines, counted
from flowopt.report.inspection import ArtifactInspection, ModelInspection, PassFindings, StoredTensors, StreamFindings
from flowopt.report.stored import StoredReport

_TOP_CODES = 3


def render_model(found: ModelInspection, model: str) -> None:
    """A captured model: size first, then interface, tensors, operators, what passes would find, where it is from."""
    screen = Screen()
    stored = f"{found.parameter_bytes:,} bytes stored"
    screen.line(f"{model}: {_operators(found.census)}, {stored}", style="bold")
    _interface(screen, found.interface, found.captured)
    screen.line()
    sizes = ", ".join(f"{name}={size}" for name, size in found.captured.items())
    cost = "an unknown number of FLOP, sizes depend on data" if found.flops is None else f"{found.flops:,} FLOP"
    at = f" at captured sizes ({sizes})" if sizes else ""
    screen.prose(f"one run{at}: {cost}, values of up to {found.activation_bytes:,} bytes at once")
    if found.state:
        screen.prose(f"state that the model changes: {', '.join(found.state)}")
    _stored(screen, found.stored)
    _census(screen, found.census)
    _passes(screen, found.passes)
    if found.streams is not None:
        _streams(screen, found.streams)
    screen.line()
    trust = f", read with --trust {found.trust}" if found.trust is not None else ""
    screen.prose(f"from {found.source}{trust}, captured by torch {found.torch_version}")
    if found.source_sha256 is not None:
        screen.line(f"sha256 {found.source_sha256}")


def render_artifact(found: ArtifactInspection, path: str) -> None:
    """An artifact: its outcome first, then interface, files, tensors, operators, what its report says."""
    screen = Screen()
    report = found.report
    outcome = f"{report.outcome}, for {report.target}, made from {report.source}" if report else "no report"
    screen.line(f"{path}: {outcome}", style="bold")
    screen.line(f"{_operators(found.census)}, {found.weight_bytes:,} bytes stored")
    if report is not None and report.adaptation is not None:
        for line in adaptation_lines(report.adaptation):
            screen.prose(line)
    for note in found.notes:
        screen.prose(f"note: {note}", style="yellow")
    if found.interface:
        _interface(screen, found.interface, {})
    screen.table(["file", "bytes"], [[name, f"{size:,}"] for name, size in found.files.items()], words=1)
    _stored(screen, found.stored)
    _census(screen, found.census)
    if report is not None:
        _report(screen, report)
    screen.line()
    opsets = ", ".join(f"{domain} {version}" for domain, version in found.opsets.items())
    parts = (f"written by {found.writer}" if found.writer else "", f"opset {opsets}" if opsets else "")
    for line in filter(None, (*parts, f"sha256 {found.model_sha256}")):
        screen.line(line)


def _operators(census: Mapping[str, int]) -> str:
    return f"{counted(sum(census.values()), 'operator')} of {counted(len(census), 'kind')}"


def _interface(screen: Screen, interface: Mapping[str, Any], captured: Mapping[str, int]) -> None:
    rows = [
        [kind, str(one["name"]), str(one["dtype"]), _shape(one["shape"]), "state" if one["state"] is not None else ""]
        for kind, key in (("input", "inputs"), ("output", "outputs"))
        for one in interface[key]
    ]
    width = 5 if any(row[4] for row in rows) else 4
    screen.table(["", "name", "dtype", "shape", ""][:width], [row[:width] for row in rows], words=width)
    dims = [
        [str(name), str(ends["minimum"]), "any" if ends["maximum"] is None else str(ends["maximum"]), size]
        for name, ends in interface["dims"].items()
        for size in [str(captured.get(name, ""))]
    ]
    width = 4 if captured else 3
    if dims:
        heads = ["free dimension", "smallest", "largest", "captured"]
        screen.table(heads[:width], [row[:width] for row in dims], words=1)


def _shape(sizes: Sequence[object]) -> str:
    return f"[{', '.join(map(str, sizes))}]"


def _stored(screen: Screen, stored: Sequence[StoredTensors]) -> None:
    rows = [[one.dtype, f"{one.tensors:,}", f"{one.elements:,}", f"{one.bytes:,}"] for one in stored]
    if rows:
        screen.table(["stored tensors", "tensors", "elements", "bytes"], rows, words=1)


def _census(screen: Screen, census: Mapping[str, int]) -> None:
    screen.table(["operator", "calls"], [[name, f"{count:,}"] for name, count in census.items()], words=1)


def _passes(screen: Screen, passes: Sequence[PassFindings]) -> None:
    rows = [[one.name, str(one.applied), str(sum(one.refused.values())), _codes(one.refused)] for one in passes]
    screen.table(["pass", "fires", "refuses", "mostly"], rows, words=1, last_is_words=True)


def _streams(screen: Screen, streams: Sequence[StreamFindings]) -> None:
    if not streams:
        screen.line()
        screen.line("no residual stream: no norm reads a sum")
    for stream in streams:
        screen.line()
        placement = f"{stream.placement}-norm{', parallel branches' if stream.is_parallel else ''}"
        screen.line(f"residual stream from {stream.first}: {stream.features} features, {placement}", style="bold")
        screen.prose(f"written by {_counts(stream.writers)}; {counted(stream.additions, 'addition')}")
        screen.prose(f"read by {_counts(stream.norms)}{_taps(stream.taps)}")


def _counts(census: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in census.items())


def _taps(taps: Sequence[str]) -> str:
    shown = ", ".join(taps[:_TOP_CODES]) + (f" and {len(taps) - _TOP_CODES} more" if len(taps) > _TOP_CODES else "")
    return f"; tapped by {shown}" if taps else ""


def _codes(refused: Mapping[str, int]) -> str:
    shown = [f"{code} {count}" for code, count in list(refused.items())[:_TOP_CODES]]
    return ", ".join([*shown, *(["..."] if len(refused) > _TOP_CODES else [])])


def _report(screen: Screen, report: StoredReport) -> None:
    rows = [[one.name, one.outcome, str(len(one.applied)), str(len(one.refused))] for one in report.passes]
    screen.table(["pass", "outcome", "applied", "refused"], rows, words=2)
    levels = [
        [one.level, one.outcome, str(len({f.case for f in one.figures})), f"{one.worst_ratio:.2f}"]
        for one in report.lowered
    ]
    if levels:
        screen.table(["optimisations", "verdict", "cases", "ratio"], levels, words=2)
    screen.line()
    if report.loop is not None:
        loop = report.loop
        screen.line(
            f"sampler {loop.sampler}: {loop.evaluations} evaluations, {loop.state} tensors of state, form {loop.form}"
        )
    if report.runtime_level:
        screen.line(f"runs at level {report.runtime_level}")
    for warning in report.warnings:
        screen.prose(f"warning: {warning}", style="yellow")
    screen.prose("made with " + ", ".join(f"{name} {version}" for name, version in report.versions.items()))
