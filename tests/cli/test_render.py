import io
import sys

import pytest

from flowopt.cli.render import progress
from flowopt.cli.render_results import Renderer
from flowopt.report.verdict import Figures, Finding, Outcome, Verdict


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


def test_names_of_a_file_cannot_speak_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "\x1b[2J\x1b]0;title\x07\r\u202e[red]" + "a" * 1_000_000
    figures = Figures(hostile, hostile, 0.0, 0.0, 0.0, None, 0.0)
    different = Verdict(Outcome.DIFFERENT, (Finding("structure", hostile, hostile, hostile),), notes=(hostile,))
    for verdict in (different, Verdict(Outcome.EQUIVALENT, (), (figures,))):
        Renderer().verify(verdict, hostile, hostile)
    out = capsys.readouterr().out
    assert all(char.isprintable() or char == "\n" for char in out)
    assert r"\x1b[2J\x1b]0;title\x07\r\u202e[red]aaa" in out.replace("\n", "") and len(out) < 100_000


def test_what_the_models_code_prints_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with progress():
        print("loading weights")
    assert capsys.readouterr() == ("", "loading weights\n")
