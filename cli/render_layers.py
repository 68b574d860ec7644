"""The attentions of a linearization on the screen: what each was judged by, and how far each is from softmax since."""

import math
from collections.abc import Sequence

from flowopt.cli.render import Screen
from flowopt.report.adaptation import KEPT, LEFT, SWAPPED, Adaptation
from flowopt.report.attention_record import AttentionRecord

_DECISIONS = {SWAPPED: "linear", KEPT: "softmax", LEFT: "left"}


def show_layers(screen: Screen, adaptation: Adaptation) -> None:
    """A row for each attention: of a dry run the judgement, of a run the error at every stage; then the reasons."""
    layers = adaptation.layers
    if adaptation.stages:
        _errors(screen, adaptation)
    else:
        _judgement(screen, layers)
    for reason, found in _by_reason(layers).items():
        screen.line(f"{', '.join(str(layer.position) for layer in found)}: {reason}")


def _judgement(screen: Screen, layers: Sequence[AttentionRecord]) -> None:
    has_effect = any(layer.effect is not None for layer in layers)
    heads = ["", "attention", "heads", "entropy", "error", "mean's", *(["effect"] if has_effect else [])]
    heads += ["softmax", "linear", "from", ""]
    rows = [
        [
            str(layer.position),
            layer.module or layer.site,
            _heads(layer),
            _figure(layer.entropy, 2),
            _figure(layer.zero_shot_error, 3),
            _figure(layer.mean_error, 3),
            *([_figure(layer.effect, 3)] if has_effect else []),
            _milliseconds(layer.softmax_ms),
            _milliseconds(layer.linear_ms),
            "-" if layer.crossover is None else f"{layer.crossover:.0f}",
            _decision(layer),
        ]
        for layer in layers
    ]
    screen.table(heads, rows, words=3, last_is_words=True, gap=1)
    screen.line()
    screen.line("entropy: of the attention's rows over that of uniform ones, 0 to 1")
    screen.line(
        "error: of the untrained linear attention on calibration data; mean's: of the mean of the values instead"
    )
    if has_effect:
        screen.line("effect: error at the model's outputs where this layer alone is replaced, untrained")
    lengths = sorted({layer.length for layer in layers})
    timed = [layer for layer in layers if layer.softmax_ms is not None]
    if timed:
        guessed = ", beyond what was timed" if any(layer.is_extrapolated for layer in timed) else ""
        at = " or ".join(map(str, lengths))
        screen.line(
            f"softmax, linear: milliseconds of one sample at length {at}{guessed}; from: where linear is faster"
        )
    else:
        screen.line("speed was not measured")


def _errors(screen: Screen, adaptation: Adaptation) -> None:
    layers = adaptation.layers
    stages = [stage.name for stage in adaptation.stages if any(stage.name in layer.errors for layer in layers)]
    rows = [
        [
            str(layer.position),
            layer.module or layer.site,
            _heads(layer),
            *(_figure(layer.errors.get(stage), 3) for stage in stages),
            _decision(layer),
        ]
        for layer in layers
    ]
    screen.table(["", "attention", "heads", *stages, ""], rows, words=3, last_is_words=True, gap=1)
    screen.line()
    screen.line("error of the attention's output on held-out data, stage by stage, what comes before it included")


def _by_reason(layers: Sequence[AttentionRecord]) -> dict[str, list[AttentionRecord]]:
    found: dict[str, list[AttentionRecord]] = {}
    for layer in layers:
        if layer.reason:
            found.setdefault(layer.reason, []).append(layer)
    return found


def _heads(layer: AttentionRecord) -> str:
    grouped = "" if layer.key_heads == layer.heads else f"/{layer.key_heads}"
    return f"{layer.heads}{grouped}x{layer.head_dim}"


def _decision(layer: AttentionRecord) -> str:
    return _DECISIONS.get(layer.decision, layer.reason.partition(":")[0])


def _figure(value: float | None, digits: int) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
