import re
from pathlib import Path

import pytest
import torch
from torch import nn

import flowopt as package
from flowopt.errors import MalformedModel
from tests.cli import models
from tests.cli.command import flowopt, model, python

MODEL_FILE = """
import torch
from torch import nn
from tests.zoo.models import randomise

def make():
    model = nn.Sequential(nn.Conv1d(3, 4, 2), nn.BatchNorm1d(4))
    randomise(model, seed=5)
    return model.eval(), (torch.randn(2, 3, 6),)
"""


def test_prints_the_version() -> None:
    ran = flowopt("--version")
    assert (ran.code, ran.out) == (0, f"flowopt {package.__version__}\n")


def test_help_names_every_command() -> None:
    ran = flowopt("--help")
    assert ran.code == 0
    for command in ("optimize", "sampler", "explain", "verify", "bench", "inspect", "passes"):
        assert re.search(rf"^  {command} ", ran.out, re.MULTILINE)


def test_without_a_command_shows_the_help_and_is_a_usage_error() -> None:
    ran = flowopt()
    assert ran.code == 2
    assert "Commands:" in ran.out


@pytest.mark.parametrize(
    ("arguments", "complaint", "help_command"),
    [
        (["optimise", "m.pt2"], "no such command 'optimise'", "flowopt --help"),
        (["optimize"], "missing argument 'MODEL'", "flowopt optimize --help"),
        (["optimize", "m.pt2", "--fast"], "no such option: --fast", "flowopt optimize --help"),
        (["optimize", "m.pt2", "--target", "gpu"], "'gpu' is not one of 'cpu', 'cuda', 'torch'", "flowopt optimize"),
        (["verify", "m.pt2"], "missing argument 'CANDIDATE'", "flowopt verify --help"),
    ],
)
def test_a_wrong_command_line_is_exit_2_and_says_how_to_go_on(
    arguments: list[str], complaint: str, help_command: str
) -> None:
    ran = flowopt(*arguments)
    assert (ran.code, ran.out) == (2, "")
    first, second = ran.err.splitlines()
    assert first.startswith("flowopt: ")
    assert first.endswith(" (exit 2)")
    assert complaint in first
    assert second.startswith(f"  try   {help_command}")


def page(folder: Path) -> str:
    (folder / "page.pt2").write_text("<html>not found</html>")
    return "page.pt2"


def weights(folder: Path) -> str:
    torch.save(nn.Linear(2, 2).state_dict(), folder / "m.pt")
    return "m.pt"


@pytest.mark.parametrize(
    ("made", "code"),
    [
        (page, 65),
        ("absent.pt2", 66),
        ("no_such_module:make", 66),
        (model("no_such_factory"), 66),
        (model("broken"), 2),
        (model("leaving"), 70),
        (model("on_a_full_disk"), 74),
        (weights, 77),
    ],
)
def test_what_is_wrong_with_a_model_has_an_exit_code_and_fits_a_screen(made: object, code: int, tmp_path: Path) -> None:
    ran = flowopt("explain", made(tmp_path) if callable(made) else made)
    assert (ran.code, ran.out) == (code, "")
    first, *more = ran.err.splitlines()
    assert re.fullmatch(rf"flowopt: .* \(exit {code}\)", first)
    assert more
    assert all(re.match(r"  (where|why  |try  |     ) \S", line) for line in more)
    assert "Traceback" not in ran.err


def test_what_a_factory_raises_is_told_with_its_place_and_notes() -> None:
    ran = flowopt("explain", model("broken"))
    assert "broken raised ValueError: the weights are of another model (exit 2)" in ran.err
    assert "  why   models.py:" in ran.err
    assert "while layer 3 was read" in ran.err


def test_an_unexpected_error_says_where_and_keeps_its_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowopt.workflows.explain.explain", lambda *_, **__: models.broken())
    ran = flowopt("explain", model("folding"))
    assert "ValueError: the weights are of another model (exit 70)" in ran.err
    assert "  where while layer 3 was read\n        tests/cli/models.py:" in ran.err


def test_debug_shows_the_traceback() -> None:
    assert "Traceback" in flowopt("explain", model("broken"), "--debug").err


def test_a_message_of_any_length_and_content_fits_a_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise MalformedModel("\x1b[2J" * 100_000, why="\x07" * 100_000, hint="again")

    monkeypatch.setattr("flowopt.cli.explain.load_model", refuse)
    for options in ((), ("--debug",)):
        ran = flowopt("explain", "model.pt2", *options)
        assert ran.code == 65
        assert all(char.isprintable() or char == "\n" for char in ran.err) and len(ran.err) < 30_000
        assert ran.err.splitlines()[-1] == "  try   again"


def test_an_interrupt_is_exit_130() -> None:
    ran = flowopt("explain", model("interrupted"))
    assert (ran.code, ran.out, ran.err) == (130, "", "flowopt: interrupted (exit 130)\n")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["passes"], ["passes", "fold-norm-affine"]])
def test_neither_help_nor_the_list_of_passes_imports_torch(arguments: list[str], tmp_path: Path) -> None:
    code = f"import sys; from flowopt.cli.main import main; main({arguments}); sys.exit('torch' in sys.modules)"
    ran = python("-c", code, folder=tmp_path)
    assert ran.code == 0, ran.err
    assert ran.out


def test_help_imports_no_rich(tmp_path: Path) -> None:
    code = "import sys; from flowopt.cli.main import main; main(['--help']); sys.exit('rich' in sys.modules)"
    assert python("-c", code, folder=tmp_path).code == 0


def test_a_process_finds_a_factory_in_its_folder_and_hands_on_the_exit_code(tmp_path: Path) -> None:
    (tmp_path / "my_model.py").write_text(MODEL_FILE)
    arguments = ("optimize", "my_model:make", "--dry-run", "--require", "fold-batch-norm:2")
    ran = python("-m", "flowopt.cli.main", *arguments, folder=tmp_path)
    assert (ran.code, ran.out) == (4, "")
    assert "fold-batch-norm was applied at 1 sites, 2 are required (exit 4)" in ran.err


def test_a_reader_that_closes_the_pipe_is_no_verdict(tmp_path: Path) -> None:
    # Code 1 would mean "different".
    code = (
        "import os, sys; from flowopt.cli.main import main; ends = os.pipe(); os.close(ends[0]); "
        "os.dup2(ends[1], 1); sys.exit(main(['passes', 'fold-norm-affine']))"
    )
    ran = python("-c", code, folder=tmp_path)
    assert (ran.code, ran.err) == (74, "")
