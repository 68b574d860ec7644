"""The attentions of a linearization on the screen."""

from pathlib import Path

import pytest

from flowopt.cli.render_adaptation import render_adaptation
from flowopt.report.adaptation import KEPT, LEFT, REFUSED, SWAPPED, Adaptation, Agreement, Stage
from flowopt.report.attention_record import AttentionRecord

STAGES = ("mean-of-values", "zero-shot", "transfer", "distill")
SLOW = "slower-here: 0.31 ms at length 256, softmax 0.11 ms"


def layer(position: int, decision: str, reason: str = "", **changed: object) -> AttentionRecord:
    given: dict[str, object] = {
        "position": position,
        "site": f"scaled_dot_product_attention_{position}",
        "module": f"blocks.{position}.attention",
        "heads": 8,
        "key_heads": 2,
        "head_dim": 64,
        "is_causal": True,
        "length": 4096,
        "decision": decision,
        "reason": reason,
        "zero_shot_error": 0.4712,
        "mean_error": 0.5239,
        "entropy": 0.8123,
        "crossover": 911.4,
        "softmax_ms": 12.34,
        "linear_ms": 2.918,
    }
    return AttentionRecord(**(given | changed))  # type: ignore[arg-type]  # each of its own type


def shown(capsys: pytest.CaptureFixture[str], *layers: AttentionRecord, stages: tuple[Stage, ...] = ()) -> list[str]:
    found = Adaptation("linearize-attention to hedgehog", "tokens.npz", 64, (), stages=stages, layers=layers)
    render_adaptation(found, None, "lm.pt2", None)
    return capsys.readouterr().out.splitlines()


def test_a_dry_run_is_a_table_of_what_each_attention_was_judged_by(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    refused = layer(2, REFUSED, SLOW, zero_shot_error=None, mean_error=None, entropy=None, crossover=None)
    kept = layer(1, KEPT, "kept-softmax: entropy 0.31, among the least")
    lines = shown(
        capsys, layer(0, SWAPPED), kept, refused, layer(3, LEFT, module=None, softmax_ms=None, linear_ms=None)
    )
    assert lines[0] == (
        "dry-run, nothing written: 1 of 4 attentions of lm.pt2 can be linearized (linearize-attention to hedgehog)"
    )
    heads = "attention heads entropy error mean's softmax linear from".split()
    at = next(i for i, line in enumerate(lines) if line.split() == heads)
    rows = [line.split() for line in lines[at + 1 :] if line[:1].isdigit()]
    text = " ".join(" ".join(lines).split())
    assert rows[0][:2] == ["0", "blocks.0.attention"]
    assert "8/2x64 0.81 0.471 0.524 12.3 2.92 911 linear" in text
    assert "- - - 12.3 2.92 - slower-here" in text and "0.81 0.471 0.524 - - 911 left" in text
    assert f"2: {SLOW}" in lines and "1: kept-softmax: entropy 0.31, among the least" in lines
    assert "softmax, linear: milliseconds of one sample at length 4096; from: where linear is faster" in lines
    assert lines[-1] == "the same command without --dry-run linearizes them and recovers the model's quality"


def test_reasons_that_are_the_same_stand_once(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, layer(0, REFUSED, SLOW), layer(1, REFUSED, SLOW))
    assert [line for line in lines if SLOW in line] == [f"0, 1: {SLOW}"]
    assert lines[-1].startswith("none can be linearized: other --layers, a larger --length, or --force")


def test_speed_that_was_not_measured_or_only_guessed_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert "speed was not measured" in shown(capsys, layer(0, SWAPPED, softmax_ms=None, linear_ms=None))
    guessed = shown(capsys, layer(0, SWAPPED, is_extrapolated=True, length=16384))
    assert any("at length 16384, beyond what was timed" in line for line in guessed)


def test_the_effect_on_outputs_has_a_column_where_it_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, layer(0, SWAPPED, effect=0.0734))
    assert any("mean's effect softmax" in " ".join(line.split()) for line in lines)
    assert any("0.073" in line for line in lines)


def test_a_run_shows_the_error_of_every_attention_by_stage(capsys: pytest.CaptureFixture[str]) -> None:
    agreement = (Agreement("logits", 64, 0.99, 0.9, 0.1, 0.95),)
    stages = tuple(Stage(name, agreement) for name in STAGES)
    errors = dict(zip(STAGES, (0.5, 0.4, 0.2, 0.1), strict=True))
    lines = shown(capsys, layer(0, SWAPPED, errors=errors), layer(1, KEPT, "kept-softmax: least"), stages=stages)
    at = next(i for i, line in enumerate(lines) if line.split() == ["attention", "heads", *STAGES])
    assert lines[at + 1].split()[-5:] == ["0.500", "0.400", "0.200", "0.100", "linear"]
    assert lines[at + 2].split()[-5:] == ["-", "-", "-", "-", "softmax"]
    assert lines[0] == "adapted, nothing written: linearize-attention to hedgehog, 1 of 2 attentions of lm.pt2"
    assert not Path("out").exists()
