"""What a function in a process of its own sees and reaches, and what is left of it."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowopt.errors import MalformedModel
from flowopt.formats.limits import MEBIBYTE, Limits
from flowopt.sandbox.isolated import run_isolated
from flowopt.sandbox.network import network_namespace
from tests.sandbox.run import ROOT, run


def has_ended(pid: int, seconds: float = 5.0) -> bool:
    """Whether a process is gone, or only waits for its parent to notice."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def written(file: Path, seconds: float = 10.0) -> str:
    """The text of a file that another process is about to write."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if file.exists() and (text := file.read_text()):
            return text
        time.sleep(0.02)
    raise AssertionError(f"{file} was not written")


class TestOutput:
    def test_a_flood_neither_hangs_nor_is_taken_for_the_answer(self) -> None:
        assert run("flood", size_bytes=100 * MEBIBYTE) == "done"

    def test_a_large_file_cannot_be_written(self) -> None:
        with pytest.raises(MalformedModel, match="OSError.*File too large"):
            run("write_file", size_bytes=65 * MEBIBYTE)

    def test_a_small_file_can(self) -> None:
        assert run("write_file", size_bytes=MEBIBYTE) == MEBIBYTE


class TestSurroundings:
    def test_a_secret_of_the_environment_is_not_visible(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FLOWOPT_TEST_SECRET", "secret")
        environment = run("surroundings")["environment"]
        assert "FLOWOPT_TEST_SECRET" not in environment
        assert environment["PATH"] == os.environ["PATH"]

    def test_the_folder_is_empty_and_gone_afterwards(self) -> None:
        seen = run("surroundings")
        assert seen["entries"] == []
        assert seen["folder"] == seen["environment"]["HOME"] == seen["environment"]["TMPDIR"]
        assert not Path(seen["folder"]).exists()

    def test_the_current_folder_is_not_searched(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.syspath_prepend("")
        path = run("surroundings")["path"]
        assert str(tmp_path) not in path and "" not in path

    def test_what_this_process_searches_is_searched(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.syspath_prepend(tmp_path)
        assert str(tmp_path) in run("surroundings")["path"]

    def test_torch_comes_only_with_a_function_that_needs_it(self) -> None:
        modules = run("surroundings")["modules"]
        assert "tests.sandbox.functions" in modules
        assert "torch" not in modules

    def test_no_open_file_is_inherited(self, tmp_path: Path) -> None:
        with (tmp_path / "open").open("w") as file:
            os.set_inheritable(file.fileno(), True)
            seen = run("surroundings")
        assert str(tmp_path / "open") not in seen["files"]
        assert len(seen["files"]) == 4  # input, output twice, and the answer
        assert seen["files"][0] == os.devnull

    def test_standard_input_is_empty(self) -> None:
        assert run("surroundings")["input"] == ""

    def test_threads_can_start(self) -> None:
        assert run("many_threads") == 20

    def test_an_absolute_path_is_readable(self, tmp_path: Path) -> None:
        (tmp_path / "model").write_text("weights")
        (tmp_path / "model").chmod(0o600)
        assert run("read_text", path=str(tmp_path / "model")) == "weights"


def can_leave_the_network() -> bool:
    """Whether another program can; root gains nothing from a user namespace, which takes its right to read files."""
    command = ["unshare", "--net", *([] if os.geteuid() == 0 else ["--user"]), "true"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


class TestNetwork:
    @pytest.fixture
    def port(self) -> Iterator[int]:
        with socket.create_server(("127.0.0.1", 0)) as server:
            yield server.getsockname()[1]

    def test_nothing_answers_where_the_network_can_be_cut(self, port: int) -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass
        if not can_leave_the_network():
            pytest.skip("this system lets no process leave its network, or has no unshare(1) to try it")
        assert run_isolated("flowopt.sandbox.network:network_namespace", {}) != network_namespace()
        with pytest.raises(MalformedModel, match="OSError|ConnectionRefusedError"):
            run("connect", port=port)


class TestProcesses:
    def test_a_grandchild_ends_with_the_answer(self) -> None:
        assert has_ended(run("start_grandchild"))

    @pytest.mark.usefixtures("hurried")
    def test_a_grandchild_ends_with_the_time(self, tmp_path: Path) -> None:
        pid_file = tmp_path / "pid"
        with pytest.raises(MalformedModel, match="took more than"):
            run("start_grandchild", Limits(seconds=1), pid_file=str(pid_file))
        assert has_ended(int(pid_file.read_text()))

    def test_an_interrupt_ends_the_child_and_is_raised_again(self, tmp_path: Path) -> None:
        pid_file = tmp_path / "pid"
        main = threading.main_thread().ident
        assert main is not None

        def interrupt() -> None:
            written(pid_file)
            signal.pthread_kill(main, signal.SIGINT)

        # A shell starts what it runs in the background with interrupts ignored.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        thread = threading.Thread(target=interrupt)
        thread.start()
        try:
            with pytest.raises(KeyboardInterrupt):
                run("sleep", pid_file=str(pid_file))
        finally:
            signal.signal(signal.SIGINT, before)
        thread.join()
        assert has_ended(int(pid_file.read_text()))

    @pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
    def test_a_parent_that_dies_takes_the_child_with_it(self, tmp_path: Path) -> None:
        pid_file = tmp_path / "pid"
        code = "import sys; from tests.sandbox.functions import run_sleeper; run_sleeper(sys.argv[1])"
        # What is killed removes no folder.
        environment = os.environ | {"TMPDIR": str(tmp_path)}
        parent = subprocess.Popen([sys.executable, "-c", code, str(pid_file)], cwd=ROOT, env=environment)
        child = int(written(pid_file))
        parent.kill()
        parent.wait()
        assert has_ended(child)
