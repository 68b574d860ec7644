"""Lowering to a torch archive."""

import json
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flowopt.errors import MalformedModel, Untrusted, UserError
from flowopt.lowering.staging import Staging
from flowopt.lowering.torch import lower_to_torch
from flowopt.runtime.artifact import Artifact
from flowopt.runtime.torch_module import open_exported
from tests.lowering import models
from tests.lowering.build import build_torch, built
from tests.lowering.test_onnx_export import require_equal


def test_it_runs_like_the_program_at_every_batch(tmp_path: Path) -> None:
    program = built(models.nested).program
    artifact = build_torch(program, tmp_path / "a")
    for batch in (1, 3, 64):
        x, spare = torch.randn(batch, 6), torch.randn(2)
        require_equal(artifact.run(x, spare=spare), program.run(x, spare))


def test_state_has_its_stored_default_and_can_be_given(tmp_path: Path) -> None:
    program = built(models.counter).program
    artifact = build_torch(program, tmp_path / "a")
    x = torch.randn(2, 300)
    first = artifact.run(x)
    require_equal(first, program.run(x))
    assert isinstance(first, dict)
    state = {"state_total": first["state_total.next"]}
    require_equal(artifact.run(x, **state), program.run(x, **state))
    require_equal(artifact.run(x), first)


def test_a_bare_tensor_stays_bare_and_dimensions_must_agree(tmp_path: Path) -> None:
    program = built(models.attention).program
    artifact = build_torch(program, tmp_path / "a")
    x = torch.randn(2, 9, 32)
    result = artifact.run(x)
    assert isinstance(result, Tensor)
    require_equal(result, program.run(x))
    with pytest.raises(UserError, match=r"float32\[batch, length, 32\]"):
        artifact.run(torch.randn(2, 9, 31))


def test_equal_bytes_in_two_folders_without_paths_or_examples(tmp_path: Path) -> None:
    program = built(models.nested).program
    for name in ("a", "some/longer/name"):
        build_torch(program, tmp_path / name)
    content = (tmp_path / "a" / "model.pt2").read_bytes()
    assert content == (tmp_path / "some/longer/name" / "model.pt2").read_bytes()
    for part in (str(tmp_path), str(Path(__file__).parents[2]), "site-packages"):
        assert part.encode() not in content
    with zipfile.ZipFile(tmp_path / "a" / "model.pt2") as archive:
        assert archive.getinfo("archive/data/sample_inputs/model.pt").file_size == 0


def test_the_staged_file_runs_before_the_commit(tmp_path: Path) -> None:
    program = built(models.attention).program
    with Staging(tmp_path / "a") as staging:
        runner = open_exported(lower_to_torch(program, staging).model)
        x = torch.randn(1, 4, 32)
        require_equal(runner.run({"x": x})["output"], program.run(x))
    assert not (tmp_path / "a").exists()


def test_it_is_opened_without_trust_unless_it_calls_code_of_its_own(tmp_path: Path) -> None:
    program = built(models.attention).program
    build_torch(program, tmp_path / "a")
    x = torch.randn(1, 4, 32)
    require_equal(Artifact.open(tmp_path / "a").run(x), program.run(x))

    model = tmp_path / "a" / "model.pt2"
    model.write_bytes(model.read_bytes().replace(b"torch.ops.aten.linear.default", b"torch.ops.mine.linear.default"))
    with pytest.raises((Untrusted, MalformedModel)):
        Artifact.open(tmp_path / "a")


def test_without_a_report_it_still_knows_its_interface(tmp_path: Path) -> None:
    program = built(models.nested).program
    build_torch(program, tmp_path / "a")
    report = tmp_path / "a" / "report.json"
    report.write_text(json.dumps({"model_sha256": "0" * 64}))
    artifact = Artifact.open(tmp_path / "a", trust="code")
    assert artifact.report == {} and artifact.target == "torch"
    x, spare = torch.randn(2, 6), torch.randn(2)
    require_equal(artifact.run(x, spare), program.run(x, spare))
