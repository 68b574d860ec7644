"""The atomic artifact folder: naming, locking, sweeping, and whose folder it may be."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowopt.errors import CannotWrite, InternalError
from flowopt.lowering.staging import Staging
from flowopt.runtime.layout import committed, weights_name

REPORT = json.dumps({"target": "cpu"})


def write(folder: Path, content: bytes, name: str = "model.onnx") -> str:
    """Commit a stand-in for a model: some bytes that name one weight file."""
    with Staging(folder) as staging:
        (weights,) = staging.weights([content, content])
        model = staging.temporary(".onnx")
        model.write_bytes(b"flowopt.version " + weights.encode())
        staging.commit(model, name, REPORT)
    return weights


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_weights_are_streamed_and_named_by_their_content(tmp_path: Path) -> None:
    with Staging(tmp_path / "a") as staging:
        (name,) = staging.weights([b"one", memoryview(b"two")])
        digest = hashlib.sha256(b"onetwo").hexdigest()
        assert name == weights_name(digest) and staging.digest(name) == digest
        assert (tmp_path / "a" / name).read_bytes() == b"onetwo"
        assert staging.weights([]) == ()


def test_a_commit_leaves_model_weights_and_report(tmp_path: Path) -> None:
    weights = write(tmp_path / "a" / "b", b"w")
    assert names(tmp_path / "a" / "b") == {"model.onnx", weights, "report.json"}
    found = committed(tmp_path / "a" / "b")
    assert found is not None and found.report == {"target": "cpu", "model_sha256": found.sha256}


def test_the_next_commit_removes_weights_that_nobody_reads(tmp_path: Path) -> None:
    first = write(tmp_path, b"1")
    second = write(tmp_path, b"2")
    assert first != second and names(tmp_path) == {"model.onnx", second, "report.json"}


def test_equal_weights_are_reused_not_rewritten(tmp_path: Path) -> None:
    weights = tmp_path / write(tmp_path, b"1")
    before = weights.stat()
    assert write(tmp_path, b"1") == weights.name
    assert (weights.stat().st_ino, weights.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_damaged_weights_of_the_same_name_are_repaired(tmp_path: Path) -> None:
    weights = tmp_path / write(tmp_path, b"1")
    weights.write_bytes(b"1x")
    write(tmp_path, b"1")
    assert weights.read_bytes() == b"11"


def test_another_target_replaces_the_model(tmp_path: Path) -> None:
    write(tmp_path, b"1")
    with Staging(tmp_path) as staging:
        model = staging.temporary(".pt2")
        model.write_bytes(b"torch")
        staging.commit(model, "model.pt2", REPORT)
    assert names(tmp_path) == {"model.pt2", "report.json"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_leaving_without_commit_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), Staging(tmp_path / "new" / "deep") as staging:
        staging.weights([b"w"])
        staging.temporary(".onnx")
        raise error
    assert names(tmp_path) == set()


def test_leaving_without_commit_keeps_the_old_artifact(tmp_path: Path) -> None:
    weights = write(tmp_path, b"1")
    with Staging(tmp_path) as staging:
        assert staging.weights([b"1", b"1"]) == (weights,)
        staging.weights([b"2"])
    assert names(tmp_path) == {"model.onnx", weights, "report.json"}


def test_weights_that_break_off_leave_nothing(tmp_path: Path) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"half of it"
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"), Staging(tmp_path / "a") as staging:
        staging.weights(chunks())
    assert names(tmp_path) == set()


def test_a_folder_that_existed_stays(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with Staging(tmp_path / "empty"):
        pass
    assert names(tmp_path) == {"empty"}


def test_leavings_of_dead_writers_are_swept(tmp_path: Path) -> None:
    weights = write(tmp_path, b"1")
    for name in (".flowopt-4000000-1.onnx", ".report.0123456789abcdef.json", "weights.0123456789abcdef.data"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "tuned.json").write_text("the user's own")
    with Staging(tmp_path):
        pass
    assert names(tmp_path) == {"model.onnx", weights, "report.json", "tuned.json"}


def test_a_first_run_that_died_does_not_block_the_next(tmp_path: Path) -> None:
    for name in (".flowopt-4000000-1.data", "weights.0123456789abcdef.data"):
        (tmp_path / name).write_bytes(b"x")
    weights = write(tmp_path, b"1")
    assert names(tmp_path) == {"model.onnx", weights, "report.json"}


def test_temporaries_are_hidden_new_and_carry_the_process(tmp_path: Path) -> None:
    with Staging(tmp_path) as staging:
        one, two = staging.temporary(".onnx"), staging.temporary(".onnx")
        assert one != two and one.parent == tmp_path and one.suffix == ".onnx"
        assert one.name.startswith(f".flowopt-{os.getpid()}-") and one.stat().st_size == 0


def test_a_second_writer_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    with Staging(tmp_path / "a"):
        script = f"from flowopt.lowering.staging import Staging\nStaging({str(tmp_path / 'a')!r}).__enter__()"
        root = Path(__file__).parents[2]
        done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True)
        assert "CannotWrite" in done.stderr and f"process {os.getpid()}" in done.stderr
        with pytest.raises(CannotWrite, match="another run"):
            Staging(tmp_path / "a").__enter__()
    write(tmp_path / "a", b"1")


def test_a_folder_with_other_files_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "model.onnx").write_bytes(b"made by somebody else")
    with pytest.raises(CannotWrite, match="thesis.tex") as caught:
        Staging(tmp_path).__enter__()
    assert "-o" in str(caught.value)
    assert (tmp_path / "model.onnx").read_bytes() == b"made by somebody else"
    assert names(tmp_path) == {"thesis.tex", "model.onnx"}


def test_an_artifact_that_lost_its_report_is_still_ours(tmp_path: Path) -> None:
    write(tmp_path, b"1")
    (tmp_path / "report.json").unlink()
    write(tmp_path, b"2")
    assert "report.json" in names(tmp_path)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(CannotWrite, match="choose another folder"):
            Staging(folder).__enter__()


def test_a_folder_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied")

    # By patching, because root may write anywhere.
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(CannotWrite, match="Permission denied"):
        Staging(tmp_path / "a").__enter__()
    assert names(tmp_path) == set()


def test_a_full_disk_is_said_early(tmp_path: Path) -> None:
    with Staging(tmp_path) as staging:
        staging.require_space(1)
        with pytest.raises(CannotWrite, match="GB left"):
            staging.require_space(10**18)


def test_only_known_model_names_and_json_objects_are_committed(tmp_path: Path) -> None:
    with Staging(tmp_path) as staging:
        with pytest.raises(InternalError, match="model.onnx"):
            staging.commit(staging.temporary(".x"), "network.onnx", REPORT)
        with pytest.raises(InternalError, match="JSON object"):
            staging.commit(staging.temporary(".x"), "model.onnx", "[]")
    assert names(tmp_path) == set()
