"""A checkpoint is there whole or not at all, and nothing else is taken for one."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from flowopt.errors import CannotWrite, MalformedModel
from flowopt.recovery.checkpoint import Checkpoint, read_checkpoint, read_facts, write_checkpoint

TENSORS = {"a": torch.tensor([1.0, float("nan")]).to(torch.bfloat16), "b": torch.arange(6).reshape(2, 3).t()}


def test_it_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "run.safetensors"
    write_checkpoint(path, Checkpoint(TENSORS | {"shared": TENSORS["b"]}, {"loss": 0.1 + 0.2, "words": ["x"]}))
    found = read_checkpoint(path)
    assert found.facts == {"loss": 0.1 + 0.2, "words": ["x"]}
    assert torch.equal(found.tensors["b"], TENSORS["b"]) and torch.equal(found.tensors["shared"], TENSORS["b"])
    assert torch.equal(found.tensors["a"].view(torch.int16), TENSORS["a"].view(torch.int16))
    assert [file.name for file in path.parent.iterdir()] == ["run.safetensors"]


def test_a_writer_that_dies_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.safetensors"
    write_checkpoint(path, Checkpoint(TENSORS, {"step": 1}))

    def refuse(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(CannotWrite, match="No space left"):
        write_checkpoint(path, Checkpoint(TENSORS, {"step": 2}))
    assert read_checkpoint(path).facts == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["run.safetensors"]


def test_other_files_are_no_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    write_checkpoint(path, Checkpoint(TENSORS, {}))
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(path.read_bytes()[:-1])
    plain = tmp_path / "plain.safetensors"
    save_file({"a": torch.ones(1)}, plain)
    newer = tmp_path / "newer.safetensors"
    save_file({"a": torch.ones(1)}, newer, metadata={"flowopt_recovery": '{"version": 99}'})
    for damaged, message in ((cut, "no checkpoint"), (plain, "no checkpoint"), (newer, "another version")):
        with pytest.raises(MalformedModel, match=message):
            read_checkpoint(damaged)


@pytest.mark.parametrize("header", ["[]", "1", "null", '"words"', "{", '{"version": []}'])
def test_headers_of_another_kind_are_no_checkpoints(header: str, tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    save_file({"a": torch.ones(1)}, path, metadata={"flowopt_recovery": header})
    for read in (read_checkpoint, read_facts):
        with pytest.raises(MalformedModel):
            read(path)


def test_facts_are_read_without_tensors(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    write_checkpoint(path, Checkpoint(TENSORS, {"step": 1}))
    assert read_facts(path) == {"step": 1}
