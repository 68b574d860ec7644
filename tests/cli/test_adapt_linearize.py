"""``flowopt adapt --linearize``: what it writes and says."""

import json
from pathlib import Path
from typing import Any

import numpy
import pytest

from flowopt.workflows.adapting.attention_speed import AttentionSpeed
from tests.cli.command import Ran, flowopt, python
from tests.workflows.adapting.tiny import HERE, post_norm_program, texts

MODEL = f"{HERE}:post_norm"
STAGES = ["mean-of-values", "zero-shot", "transfer", "distill"]
QUICK = ("--steps", "4", "--transfer-steps", "10", "--no-timing")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "tokens.npz"
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in texts(256, seed=1).items()}
    numpy.savez(path, **arrays)
    return path


@pytest.fixture(scope="module", autouse=True)
def prepared() -> Any:
    """The model is there at once, and nothing is timed: that takes longer than all the rest."""
    with pytest.MonkeyPatch.context() as patched:
        speed = AttentionSpeed(None, "nobody timed it")
        patched.setattr("flowopt.workflows.adapting.judged_attention.attention_speed", lambda *_, **__: speed)
        patched.setattr("flowopt.cli.adapt.load_model", lambda *_: post_norm_program().copy())
        yield


@pytest.fixture(scope="module")
def artifact(prepared: None, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ran]:
    folder = tmp_path_factory.mktemp("made") / "out"
    options = ("--linearize", "hedgehog", "--lora", "2", "--target", "torch", *QUICK)
    return folder, flowopt("adapt", MODEL, *options, "--data", data, "-o", folder)


def test_the_outcome_is_the_first_line_and_the_artifact_the_last(artifact: tuple[Path, Ran]) -> None:
    folder, ran = artifact
    assert ran.code == 0, ran.err
    assert ran.first == f"approximate: linearize-attention to hedgehog, 2 of 2 attentions of {MODEL} for torch"
    assert ran.last.startswith(f"artifact: {folder} (model.pt2, report.json")


def test_the_stages_and_the_error_of_every_attention_are_shown(artifact: tuple[Path, Ran]) -> None:
    lines = artifact[1].out.splitlines()
    at = next(i for i, line in enumerate(lines) if line.split() == ["attention", "heads", *STAGES])
    assert [line.split()[:2] for line in lines[at + 1 : at + 3]] == [["0", "blocks.0"], ["1", "blocks.1"]]
    at = next(i for i, line in enumerate(lines) if line.startswith("stage "))
    assert [line.split()[0] for line in lines[at + 1 : at + 5]] == STAGES
    assert "as matrices of rank 2, added to the weights" in artifact[1].out


def test_inspect_says_how_the_artifact_was_made(artifact: tuple[Path, Ran]) -> None:
    ran = flowopt("inspect", artifact[0])
    text = " ".join(ran.out.split())
    assert "adapted on tokens.npz: linearize-attention to hedgehog, 2 of 2 attentions linearized" in text


def test_a_dry_run_is_a_table_of_attentions_that_80_columns_hold(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    ran = flowopt("adapt", MODEL, "--linearize", "elu", "--data", data, "--dry-run", "--json", "out.json")
    assert ran.code == 0, ran.err
    assert ran.first == (
        f"dry-run, nothing written: 2 of 2 attentions of {MODEL} can be linearized (linearize-attention to elu)"
    )
    lines = ran.out.splitlines()
    at = next(i for i, line in enumerate(lines) if line.split()[:2] == ["attention", "heads"])
    assert max(map(len, lines[at : at + 3])) <= 80
    assert [line.split()[1] for line in lines[at + 1 : at + 3]] == ["blocks.0", "blocks.1"]
    assert ran.last == "the same command without --dry-run linearizes them and recovers the model's quality"
    found = json.loads(Path("out.json").read_text())
    assert [layer["decision"] for layer in found["adaptation"]["layers"]] == ["swapped", "swapped"]
    assert [path.name for path in Path().iterdir()] == ["out.json"]


def test_layers_that_keep_softmax_are_told_with_the_reason(data: Path) -> None:
    ran = flowopt("adapt", MODEL, "--linearize", "elu", "--keep-softmax", "0.5", "--data", data, "--dry-run")
    assert ran.first.startswith("dry-run, nothing written: 1 of 2 attentions")
    rows = [line.split() for line in ran.out.splitlines() if line.startswith(("0 blocks", "1 blocks"))]
    assert sorted(row[-1] for row in rows) == ["linear", "softmax"]
    (reason,) = [line for line in ran.out.splitlines() if line.startswith(("0: ", "1: "))]
    assert "softmax" in reason and "entropy" in reason


def test_beyond_the_budget_is_exit_1_and_nothing_is_written(data: Path) -> None:
    options = ("--linearize", "mean", "--recover", "none", "--min-cosine", "0.9999")
    ran = flowopt("adapt", MODEL, *options, "--data", data, "-o", "out")
    assert ran.code == 1 and not Path("out").exists()
    assert ran.first == f"beyond its budget, nothing written: linearize-attention to mean, 2 of 2 attentions of {MODEL}"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--window", "8"), "--window is of hybrid"),
        (("--length", "1"), "invalid value for '--length'"),
        (("--form", "recurrent", "--keep-softmax", "0.5"), "a step carries no softmax attention"),
        (("--keep-softmax", "1"), "keep_softmax=1.0 is no share"),
        (("--layers", "decoder.*"), "'decoder.*' names no attention"),
    ],
)
def test_what_does_not_fit_is_exit_2(data: Path, options: tuple[str, ...], complaint: str) -> None:
    ran = flowopt("adapt", MODEL, "--linearize", "hedgehog", *options, "--data", data, "-o", "out")
    assert ran.code == 2 and complaint in ran.err and not Path("out").exists()


@pytest.mark.slow
def test_two_processes_linearize_the_same_layers_and_write_one_artifact(data: Path, tmp_path: Path) -> None:
    words = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "flowopt.cli.main", "adapt", MODEL)
    options = ("--linearize", "hedgehog", "--force", "--lora", "2", "--data", str(data), "--target", "torch", *QUICK)
    ran = python(*words, *options, "-o", "out", folder=tmp_path)
    assert ran.code == 0, ran.err
    assert ran.out.count("approximate: linearize-attention to hedgehog, 2 of 2 attentions") == 1
    assert (tmp_path / "out" / "model.pt2").is_file()
