"""An adaptation on the screen: the outcome, every norm or attention, every stage beside the original, its worth."""

import math
from pathlib import Path

from flowopt.cli.render import Screen
from flowopt.cli.render_layers import show_layers
from flowopt.cli.render_results import show_artifact, show_findings
from flowopt.cli.summary import counted
from flowopt.report.adaptation import LEFT, SWAPPED, Adaptation, Comparison, NormRecord, Stage
from flowopt.report.report import Report

_MEGABYTE = 1e6


def render_adaptation(adaptation: Adaptation, report: Report | None, model: str, folder: Path | None) -> None:
    """One adaptation: outcome first, what is left to do last."""
    screen = Screen()
    screen.line(_headline(adaptation, report, model, folder), style="bold")
    for said in adaptation.broken:
        screen.line(f"beyond the budget: {said}", style="red")
    held_out = "some samples" if adaptation.held_out is None else counted(adaptation.held_out, "sample")
    screen.line(f"data: {adaptation.data}; {held_out} held out")
    if adaptation.norms:
        _norms(screen, adaptation)
    if adaptation.layers:
        show_layers(screen, adaptation)
    if adaptation.stages:
        _stages(screen, adaptation)
    if adaptation.tried:
        _tried(screen, adaptation)
    if adaptation.comparison is not None:
        _comparison(screen, adaptation.comparison)
    for note in adaptation.notes:
        screen.line(f"note: {note}")
    if report is not None:
        for warning in report.warnings:
            screen.line(f"warning: {warning}", style="yellow")
        if folder is not None:
            show_artifact(screen, report, folder)
        else:
            for level in report.lowered:
                show_findings(screen, level.verdict.findings)
    if not adaptation.stages:
        screen.line(_next(adaptation), style="bold")


def _headline(adaptation: Adaptation, report: Report | None, model: str, folder: Path | None) -> str:
    whose, can_be = model, "recalibrated"
    if adaptation.norms:
        whose, can_be = f"{len(adaptation.swapped)} of {counted(len(adaptation.norms), 'norm')} of {model}", "replaced"
    if adaptation.layers:
        whose = f"{len(adaptation.linearized)} of {counted(len(adaptation.layers), 'attention')} of {model}"
        can_be = "linearized"
    if not adaptation.stages:
        return f"dry-run, nothing written: {whose} can be {can_be} ({adaptation.method})"
    outcome = "beyond its budget, nothing written" if adaptation.broken else report.outcome if report else "adapted"
    written = "" if folder is not None or adaptation.broken else ", nothing written"
    target = f" for {report.target}" if report is not None else ""
    return f"{outcome}{written}: {adaptation.method}, {whose}{target}"


def _norms(screen: Screen, adaptation: Adaptation) -> None:
    measured = [stage.name for stage in adaptation.stages if _errors(adaptation, stage.name)]
    stages = tuple(dict.fromkeys([*measured[:1], *measured[-1:]]))
    heads = ["", "norm", "kind", "score", "massive", "saves", *(["error"] if stages else []), ""]
    screen.table(heads, [_norm_row(norm, stages) for norm in adaptation.norms], words=3, last_is_words=True, gap=1)
    screen.line()
    is_rms = adaptation.method.endswith(" rms")
    of = "an RMS norm in its place" if is_rms else "the best fixed scale"
    screen.line(f"score: relative error of {of}; massive: largest deviation of a token over the median")
    saved = sum(norm.saved_bytes for norm in adaptation.swapped)
    screen.line(f"saves: read and written in one run at the captured sizes; {_bytes(saved)} of those to be replaced")
    if stages:
        screen.line(f"error: of the norm's value on held-out data, {' and '.join(stages)}")


def _errors(adaptation: Adaptation, stage: str) -> bool:
    return any(stage in norm.errors for norm in adaptation.norms)


def _norm_row(norm: NormRecord, stages: tuple[str, ...]) -> list[str]:
    errors = [" ".join(f"{norm.errors[name]:.3f}" for name in stages if name in norm.errors)] if stages else []
    decision = {SWAPPED: "replaced", LEFT: "left"}.get(norm.decision, norm.reason.partition(":")[0])
    numbers = [
        f"{norm.score:.3f}" if math.isfinite(norm.score) else "-",
        f"{norm.massive_ratio:.1f}",
        _bytes(norm.saved_bytes),
    ]
    kind = f"{norm.kind}, {norm.placement}"
    return [str(norm.position), norm.module or norm.site, kind, *numbers, *errors, decision]


def _stages(screen: Screen, adaptation: Adaptation) -> None:
    has_metric = adaptation.original_metric is not None
    heads = ["stage", "output", "cosine", "worst", "error", "top-1", *([adaptation.metric] if has_metric else [])]
    rows: list[list[str]] = []
    if has_metric:
        rows.append(["original", "", "", "", "", "", f"{adaptation.original_metric:.4f}"])
    for stage in adaptation.stages:
        rows += _stage_rows(stage, has_metric)
    screen.table([*heads, "seconds"], [row if len(row) > len(heads) else [*row, ""] for row in rows], words=2, gap=1)
    screen.line()
    screen.line(
        "beside the original on held-out data, by rows: mean and least cosine, relative error, same largest element"
    )
    for stage in adaptation.stages:
        for note in stage.notes:
            screen.line(f"{stage.name}: {note}")


def _stage_rows(stage: Stage, has_metric: bool) -> list[list[str]]:
    rows = []
    for at, one in enumerate(stage.agreement):
        top1 = "" if one.top1 is None else f"{one.top1:.2%}"
        figures = [f"{one.cosine:.4f}", f"{one.worst_cosine:.4f}", f"{one.relative_error:.4f}", top1]
        metric = ["" if at or stage.metric is None else f"{stage.metric:.4f}"] if has_metric else []
        rows.append([stage.name if not at else "", one.output, *figures, *metric, "" if at else f"{stage.seconds:.1f}"])
    return rows


def _tried(screen: Screen, adaptation: Adaptation) -> None:
    screen.table(["tried", "figure"], [[name, f"{figure:.4f}"] for name, figure in adaptation.tried.items()], words=1)
    screen.line()


def _comparison(screen: Screen, found: Comparison) -> None:
    sizes = " ".join(f"{name}={size}" for name, size in found.sizes.items()) or "its sizes"
    ratio = found.ratio
    screen.line(
        f"latency at {sizes}: {found.adapted_ms:.3g} ms, the original's artifact {found.original_ms:.3g} ms: "
        f"ratio {ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"
    )
    (stored_before, stored), (live_before, live) = found.stored_bytes, found.activation_bytes
    screen.line(
        f"memory: {_bytes(stored)} of weights, the original's {_bytes(stored_before)}; "
        f"{_bytes(live)} of values at once, the original's {_bytes(live_before)}"
    )


def _next(adaptation: Adaptation) -> str:
    if adaptation.linearized:
        return "the same command without --dry-run linearizes them and recovers the model's quality"
    if adaptation.layers:
        return "none can be linearized: other --layers, a larger --length, or --force where it is only slower"
    if not adaptation.norms:
        return "the same command without --dry-run stores the new statistics and measures what they change"
    if adaptation.swapped:
        return "the same command without --dry-run replaces them and recovers the model's quality"
    return "none can be replaced: --force replaces norms above --threshold too, at the price that the score tells"


def _bytes(count: int) -> str:
    return f"{count / _MEGABYTE:.3g} MB" if count >= 1e5 else f"{count / 1e3:.3g} kB"
