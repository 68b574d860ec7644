import json
import shlex
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from onnx import helper

from flowopt.cli.options import TargetName, Trust
from flowopt.lowering.targets import TARGETS
from flowopt.program.loading import load
from flowopt.report.verdict import Finding, Outcome, Verdict
from tests.cli.command import flowopt, model
from tests.cli.models import folding

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the target's device takes part")


def saved_archive(path: Path) -> Path:
    made = folding()
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(made["module"], made["args"], dynamic_shapes={"signal": {0: batch}}, strict=False)
    torch.export.save(exported, path)
    return path


def test_options_offer_what_the_library_takes() -> None:
    assert set(get_args(TargetName)) == set(TARGETS)
    assert get_args(Trust) == get_args(load.Trust)


def test_writes_an_artifact_and_says_what_was_done() -> None:
    ran = flowopt("optimize", model("folding"))
    assert (ran.code, ran.err) == (0, "")
    assert ran.first == f"verified: 2 rewrites applied to {model('folding')} for cpu"
    assert {"model.onnx", "report.json"} <= {p.name for p in Path("Folding.flowopt").iterdir()}
    assert ran.last.startswith("artifact: Folding.flowopt (model.onnx, report.json")
    for part in ("fold-batch-norm", "kept", "batch_norm", "stored tensors: ", "disabled", "equivalent", "power"):
        assert part in ran.out


@pytest.mark.parametrize("columns", [80, 160])
def test_no_table_line_is_wider_than_the_screen(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    ran = flowopt("optimize", model("post_norm"), "--dry-run")
    tables = [line for line in ran.out.splitlines()[1:] if not line.startswith(("artifact", "note", "warning"))]
    assert max(len(line) for line in tables) <= columns


def test_no_rewrite_is_said_in_the_first_line_with_the_most_frequent_refusal() -> None:
    first = flowopt("optimize", model("post_norm"), "--dry-run").first
    assert ": 0 rewrites applied to " in first
    assert first.endswith("most frequent refusal: post-norm (2 of 4 sites)")


def test_no_site_is_said_in_the_first_line() -> None:
    first = flowopt("optimize", model("without_norms"), "--dry-run", "--passes", "fold-norm-affine").first
    assert ": 0 rewrites applied to " in first
    assert first.endswith("no pass found a site")


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    ran = flowopt("optimize", model("folding"), "--dry-run")
    assert ran.code == 0
    assert ran.first.startswith("dry-run, nothing written, program equivalent: 2 rewrites")
    assert list(tmp_path.iterdir()) == []


@without_gpu
def test_cuda_without_a_gpu_ends_with_the_command_that_completes_it() -> None:
    options = ["--eval", "--dynamic", "batch=signal:0:1..9"]
    ran = flowopt("optimize", model("in_train_mode"), "--target", "cuda", "-o", "out dir", *options)
    assert ran.code == 0
    outcome, command = ran.last.split(":", 1)
    assert outcome == "verified-on-cpu"
    words = shlex.split(command[command.index("flowopt verify") :])
    assert words == ["flowopt", "verify", model("in_train_mode"), "out dir", "--provider", "cuda", *options]
    # The same command completes here, on the device that is here.
    words[words.index("cuda")] = "cpu"
    assert flowopt(*words[1:]).code == 0


@without_gpu
def test_require_device_makes_a_missing_gpu_exit_3() -> None:
    ran = flowopt("optimize", model("folding"), "--target", "cuda", "--require-device")
    assert ran.code == 3
    assert ran.last.startswith("verified-on-cpu: ")


def test_the_target_torch_writes_an_archive() -> None:
    ran = flowopt("optimize", model("folding"), "--target", "torch", "-o", "out")
    assert ran.code == 0
    assert Path("out/model.pt2").is_file()


@pytest.mark.parametrize("option", [["--dry-run"], ["--verify", "off"]])
def test_require_device_needs_a_check_on_the_device(option: list[str]) -> None:
    assert flowopt("optimize", model("folding"), "--target", "cuda", "--require-device", *option).code == 2


def test_no_verification_is_said_last() -> None:
    ran = flowopt("optimize", model("folding"), "--verify", "off")
    assert ran.code == 0
    assert ran.first.startswith("not-verified: 2 rewrites")
    assert ran.last.startswith("not-verified: ")


def test_verification_of_the_end_alone() -> None:
    ran = flowopt("optimize", model("folding"), "--verify", "final", "--dry-run")
    assert ran.code == 0
    assert ran.first.startswith("dry-run, nothing written, program equivalent: 2 rewrites")


def test_a_model_that_cannot_be_compared_is_exit_3(tmp_path: Path) -> None:
    ran = flowopt("optimize", model("random"))
    assert ran.code == 3
    assert ran.first.startswith("inconclusive, nothing written: ")
    assert "draws random numbers" in ran.out
    assert list(tmp_path.iterdir()) == []


def test_a_requirement_that_is_not_met_is_exit_4(tmp_path: Path) -> None:
    ran = flowopt("optimize", model("post_norm"), "--require", "fold-norm-affine:1")
    assert ran.code == 4
    assert "fold-norm-affine was applied at 0 sites, 1 are required (exit 4)" in ran.err
    assert "  why   2 x post-norm" in ran.err
    assert list(tmp_path.iterdir()) == []


def test_a_requirement_that_is_met_is_exit_0() -> None:
    assert flowopt("optimize", model("folding"), "--require", "fold-batch-norm:1", "--dry-run").code == 0


def test_skip_leaves_a_pass_out() -> None:
    ran = flowopt("optimize", model("folding"), "--skip", "fold-batch-norm", "--dry-run")
    assert ": 1 rewrite applied to " in ran.first
    assert "fold-batch-norm" not in ran.out


def test_options_of_passes_arrive() -> None:
    ran = flowopt("optimize", model("folding"), "--passes", "fold-batch-norm:min_variance=1000", "--dry-run")
    assert ran.first.endswith("most frequent refusal: tiny-scale (1 of 1 site)")


@pytest.mark.parametrize("option", ["--passes", "--skip", "--require"])
def test_an_unknown_pass_suggests_the_nearest_before_the_model_is_loaded(option: str) -> None:
    name = "fold-batchnorm"
    ran = flowopt("optimize", model("broken"), option, f"{name}:1" if option == "--require" else name)
    assert ran.code == 2
    assert "did you mean fold-batch-norm" in ran.err


@pytest.mark.parametrize(("strict", "code"), [([], 0), (["--strict"], 1)])
def test_a_reverted_pass_is_a_warning_unless_strict(
    monkeypatch: pytest.MonkeyPatch, strict: list[str], code: int
) -> None:
    def veto(self: object, run: Any) -> Verdict | None:
        if run.rewrite_pass.pass_name() != "fold-batch-norm":
            return None
        return Verdict(Outcome.DIFFERENT, (Finding("ratio", "output", "traced", "1e-3, where 1e-6 is allowed"),))

    monkeypatch.setattr("flowopt.verification.verify_passes.VerifyPasses.judge", veto)
    ran = flowopt("optimize", model("folding"), "--dry-run", *strict)
    assert ran.code == code
    assert "1 rewrite applied" in ran.first
    assert "fold-batch-norm reverted (1)" in ran.first
    assert "warning: fold-batch-norm was reverted: ratio gate: output: 1e-3, where 1e-6 is allowed" in ran.out
    assert ran.last.startswith("strict: ") == bool(strict)


def test_a_folder_with_other_files_is_exit_73_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("do not delete")
    monkeypatch.delattr("flowopt.workflows.verified_run.run_passes")
    ran = flowopt("optimize", model("folding"), "-o", "out")
    assert ran.code == 73
    assert "thesis.txt" in ran.err
    assert (tmp_path / "out" / "thesis.txt").read_text() == "do not delete"


@pytest.mark.parametrize("trust", [[], ["--trust", "code"]])
def test_an_archive_is_optimized_as_it_is(tmp_path: Path, trust: list[str]) -> None:
    ran = flowopt("optimize", saved_archive(tmp_path / "m.pt2"), "--dry-run", *trust)
    assert ran.code == 0
    assert ": 2 rewrites applied to " in ran.first


def test_dynamic_on_an_archive_prints_its_dimensions(tmp_path: Path) -> None:
    ran = flowopt("optimize", saved_archive(tmp_path / "m.pt2"), "--dynamic", "batch=signal:0:1..4")
    assert ran.code == 2
    assert "an archive is captured already, and its dimensions are fixed (exit 2)" in ran.err
    assert "  why   it takes signal (1..64, 3, 6)" in ran.err


def test_dynamic_replaces_the_dimensions_of_a_factory() -> None:
    ran = flowopt("optimize", model("folding"), "--dynamic", "rows=signal:0:2..9", "--json", "-", "--dry-run")
    assert ran.code == 0
    interface = json.dumps(json.loads(ran.out)["interface"])
    assert '"rows"' in interface
    assert '"batch"' not in interface


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("rows=image:0", "dynamic= names ['image'], but the inputs are ['signal']"),
        ("rows=signal:7", "axis 7 of 'signal'"),
    ],
)
def test_dynamic_that_does_not_fit_the_inputs_is_exit_2(spec: str, complaint: str) -> None:
    ran = flowopt("optimize", model("folding"), "--dynamic", spec)
    assert ran.code == 2
    assert complaint in ran.err


def test_an_onnx_file_is_exit_2_and_points_to_verify(tmp_path: Path) -> None:
    onnx_model = helper.make_model(helper.make_graph([], "g", [], []), producer_name="pytorch")
    (tmp_path / "model.onnx").write_bytes(onnx_model.SerializeToString())
    ran = flowopt("optimize", "model.onnx")
    assert ran.code == 2
    assert "flowopt verify" in ran.err


def test_json_on_stdout_is_alone_there() -> None:
    ran = flowopt("optimize", model("talking"), "--json", "-")
    result = json.loads(ran.out)
    assert (result["outcome"], result["exit_code"], result["artifact"]) == ("verified", 0, "Folding.flowopt")
    assert result["verdict"]["outcome"] == "equivalent"
    assert ran.err == "a line that the model's own code prints\n"


def test_json_in_a_file_comes_beside_the_tables(tmp_path: Path) -> None:
    ran = flowopt("optimize", model("folding"), "--json", "result.json", "--dry-run")
    assert ran.first.startswith("dry-run")
    assert json.loads((tmp_path / "result.json").read_text())["artifact"] is None


def test_a_json_file_that_cannot_be_written_is_exit_73_before_the_work() -> None:
    ran = flowopt("optimize", model("broken"), "--json", "none/result.json")
    assert ran.code == 73


def test_a_lowered_file_that_differs_is_exit_1_and_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Verdict(Outcome.DIFFERENT, (Finding("ratio", "output", "traced", "1e-3, where 1e-6 is allowed"),))
    monkeypatch.setattr("flowopt.workflows.lower.verify_outputs", lambda *_, **__: found)
    ran = flowopt("optimize", model("folding"))
    assert ran.code == 1
    first, second, *_ = ran.out.splitlines()
    assert first.startswith("different, nothing written: ")
    assert "ratio gate, output: 1e-3" in second
    assert list(tmp_path.iterdir()) == []
