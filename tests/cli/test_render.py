import io
import sys

import pytest

from flowopt.cli.render import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_shows_each_step_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with progress() as show:
        show("oracle: traced[batch=3]")
    assert "oracle: traced[batch=3]" in terminal.getvalue()


def test_progress_is_silent_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    with progress() as show:
        show("oracle")
    assert capsys.readouterr() == ("", "")


def test_what_the_models_code_prints_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with progress():
        print("loading weights")
    assert capsys.readouterr() == ("", "loading weights\n")
