"""Workers: real processes, each with one tiny model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from flowopt.measuring import process
from flowopt.measuring.child import child_command, child_environment, reason_of
from flowopt.measuring.contender import Contender
from flowopt.measuring.process import ContenderFailedError, Worker

MODELS = "tests.measuring.models"
NAMES = ("ids", "mask")


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inputs") / "inputs.safetensors"
    save_file({"ids": torch.arange(6).reshape(1, 6), "mask": torch.ones(1, 6, dtype=torch.int64)}, path)
    return path


def worker(inputs: Path, name: str = "tiny") -> Worker:
    return Worker(Contender(name, "eager", f"{MODELS}:{name}"), inputs, NAMES, 1)


def group_is_alive(pid: int) -> bool:
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_worker_opens_and_runs_bursts_and_leaves_nothing_behind(inputs: Path, artifact: Path) -> None:
    with Worker(Contender("ours", "artifact", str(artifact)), inputs, NAMES, 1) as ours:
        ours.wait_ready()
        assert load_file(ours.outputs)["0"].shape == (1, 6, 3)
        for _ in range(2):
            found = ours.burst(0.01)
            assert len(found) >= 3 and min(found) > 0
        pid, folder = ours._process.pid, ours.outputs.parent
        assert group_is_alive(pid) and folder.is_dir()
    assert not group_is_alive(pid) and not folder.exists()
    ours.close()  # a second time, without harm


def test_a_model_that_raises_gives_its_reason_in_one_line(inputs: Path) -> None:
    with worker(inputs, "failing") as failing:
        with pytest.raises(ContenderFailedError, match="^ValueError: this model does not run$"):
            failing.wait_ready()
        assert not group_is_alive(failing._process.pid)


def test_a_process_that_ends_by_itself_is_told_with_its_code(inputs: Path) -> None:
    reason = pytest.raises(ContenderFailedError, match="^it ended with code 7")
    with worker(inputs, "leaving_at_once") as leaving, reason:
        leaving.wait_ready()


@pytest.mark.slow
def test_one_that_ends_in_a_burst_or_hangs_there_is_told(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with worker(inputs, "leaving_later") as leaving, worker(inputs, "hanging") as hanging:
        leaving.wait_ready()
        hanging.wait_ready()
        monkeypatch.setattr(process, "_BURST_SECONDS", 0.5)
        with pytest.raises(ContenderFailedError, match="^no answer within 0.5 s$"):
            hanging.burst(0.01)
        assert not group_is_alive(hanging._process.pid)
        with pytest.raises(ContenderFailedError, match="^it ended with code 7"):
            leaving.burst(0.01)


@pytest.mark.slow
def test_a_worker_ends_when_the_process_that_started_it_is_killed(inputs: Path, tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from tests.measuring.test_process import worker\n"
        "w = worker(Path(sys.argv[1])); w.wait_ready(); print(w._process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    command = [sys.executable, "-c", code, str(inputs)]
    environment = child_environment() | {"TMPDIR": str(tmp_path)}
    # The worker holds the error pipe open: its end is the worker's.
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert done.returncode == -9
    pid = int(done.stdout)
    for _ in range(200):
        if not group_is_alive(pid):
            return
        subprocess.run(["sleep", "0.05"], check=True)
    pytest.fail("the worker goes on")


@pytest.mark.slow
def test_a_child_imports_flowopt_from_where_this_process_does_and_factories_from_its_folder(tmp_path: Path) -> None:
    """A folder that is named like the package, beside a factory: the factory is found, the folder is not."""
    (tmp_path / "flowopt").mkdir()
    (tmp_path / "flowopt" / "__init__.py").write_text("raise AssertionError('the wrong one')")
    (tmp_path / "my_model.py").write_text("from tests.measuring.models import tiny as make\n")
    spec = tmp_path / "spec.json"
    inputs = tmp_path / "inputs.safetensors"
    save_file({"ids": torch.zeros(1, 2, dtype=torch.int64), "mask": torch.ones(1, 2, dtype=torch.int64)}, inputs)
    told = {"inputs": str(inputs), "input_names": NAMES, "outputs": str(tmp_path / "outputs"), "threads": 1}
    spec.write_text(json.dumps(told | {"contender": Contender("tiny", "eager", "my_model:make").plain()}))
    done = subprocess.run(
        child_command("flowopt.measuring.worker", [str(spec)]),
        cwd=tmp_path,
        env=child_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == '{"ready": true}\n', done


@pytest.mark.parametrize(
    ("status", "stderr", "expected"),
    [
        (None, "", "no answer within 9 s"),
        (-11, "Warning: something\n", "it crashed with SIGSEGV"),
        (1, "", "it ended with code 1"),
        (1, 'Traceback\n  File "x"\nValueError: no\n  hint\n', "it ended with code 1: ValueError: no"),
    ],
)
def test_why_a_child_gave_no_answer(status: int | None, stderr: str, expected: str) -> None:
    assert reason_of(status, stderr, 9.0) == expected
