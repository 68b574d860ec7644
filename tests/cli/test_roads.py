"""A file becomes a result by what the messages print; what cannot become one is called what it is."""

import inspect
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import flowopt as package
from flowopt.errors import FlowoptError
from tests.cli.command import flowopt
from tests.goals.roads import NAME, REFUSED, ROADS, TAKEN, check_refused, check_taken, check_verifies, prepared, tried

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the target's device takes part")
# Two rounds: a refusal, and what it says to try.
_QUICK = "safetensors"


@pytest.fixture(autouse=True)
def without_modules_of_other_folders() -> Iterator[None]:
    """Every test has a my_model.py of its own."""
    for name in ("my_model", "my_net"):
        sys.modules.pop(name, None)
    yield
    for name in ("my_model", "my_net"):
        sys.modules.pop(name, None)


def test_the_printed_commands_end_in_an_artifact_of_the_files_model(tmp_path: Path) -> None:
    check_taken(tmp_path, _QUICK, NAME)


@pytest.mark.slow
@pytest.mark.parametrize("kind", TAKEN)
def test_the_printed_commands_end_in_an_artifact_that_verifies(kind: str, tmp_path: Path) -> None:
    check_verifies(tmp_path, NAME, check_taken(tmp_path, kind, NAME))


@pytest.mark.parametrize("kind", REFUSED)
def test_a_refusal_says_what_the_file_is_and_what_to_try(kind: str, tmp_path: Path) -> None:
    for file in (NAME, f"model{ROADS[kind].suffix}"):
        prepared(tmp_path, kind, file)
        check_refused(flowopt("optimize", file, "--target", "cpu", "-o", "out"), kind, file)


@pytest.mark.parametrize("kind", ["state dict", "pickled module", "safetensors"])
def test_the_python_api_names_keywords_of_load(kind: str, tmp_path: Path) -> None:
    prepared(tmp_path, kind, NAME)
    with pytest.raises(FlowoptError) as caught:
        package.load(NAME)
    said = re.search(r"\n  try   again with (.*)", str(caught.value))
    assert said is not None, str(caught.value)
    keywords = dict(re.findall(r"(\w+)=('[^']*')", said[1]))
    assert (
        keywords
        == {
            "state dict": {"trust": "'weights'", "factory": "'my_model:factory'"},
            "pickled module": {"trust": "'code'"},
            "safetensors": {"factory": "'my_model:factory'"},
        }[kind]
    )
    assert keywords.keys() <= inspect.signature(package.load).parameters.keys()


def test_the_python_api_names_shapes_as_a_dictionary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    prepared(tmp_path, "pickled module", NAME)
    with pytest.raises(FlowoptError, match=re.escape("again with shapes={'signal': '1x3x64'}")):
        package.load(NAME, trust="code")
    assert "shapes" in inspect.signature(package.load).parameters


def test_explain_and_verify_print_their_own_command(tmp_path: Path) -> None:
    prepared(tmp_path, "state dict", NAME)
    for command in (["explain", NAME, "--pass", "fold-batch-norm"], ["verify", NAME, "out dir", "--trust", "data"]):
        ran = flowopt(*command)
        kept = [word for word in command if word not in ("--trust", "data")]
        assert shlex.split(tried(ran.err)) == [
            *("flowopt", *kept, "--trust", "weights", "--factory", "my_model:factory")
        ]


def test_a_command_to_try_keeps_the_end_of_options(tmp_path: Path) -> None:
    prepared(tmp_path, "pickled module", "-model.pt")
    assert tried(flowopt("explain", "--", "-model.pt").err) == "flowopt explain --trust code -- -model.pt"


def test_explain_takes_weights_with_a_factory(tmp_path: Path) -> None:
    prepared(tmp_path, "safetensors", NAME)
    ran = flowopt("explain", NAME, "--factory", "my_model:factory")
    assert (ran.code, ran.first) == (0, f"1 rewrite possible in {NAME}")


@without_gpu
def test_verified_on_cpu_ends_with_a_command_that_has_all_options_of_loading(tmp_path: Path) -> None:
    prepared(tmp_path, "safetensors", NAME)
    options = ["--eval", "--factory", "my_model:factory", "--dynamic", "batch=signal:0:1..9"]
    options += ["--shape", "signal=2x3x16", "--trust", "weights", "--limit", "seconds=300"]
    ran = flowopt("optimize", NAME, "--target", "cuda", "-o", "out dir", *options)
    assert ran.code == 0, ran.err
    words = shlex.split(ran.last[ran.last.index("flowopt verify") :])
    assert words == ["flowopt", "verify", NAME, "out dir", "--provider", "cuda", *options]
    words[words.index("cuda")] = "cpu"
    verified = flowopt(*words[1:])
    assert verified.code == 0, verified.err
    assert "smallest[batch=1]" in verified.out


def test_verify_gives_a_factory_of_weights_to_the_weights_alone(tmp_path: Path) -> None:
    prepared(tmp_path, "safetensors", NAME)
    options = ("--factory", "my_model:factory")
    assert flowopt("verify", NAME, NAME, *options).code == 0
    # The factory itself has other weights than the file.
    assert flowopt("verify", NAME, "my_model:factory", *options).code == 1


def test_verify_refuses_a_factory_without_weights(tmp_path: Path) -> None:
    prepared(tmp_path, "archive", NAME)
    ran = flowopt("verify", "my_model:factory", NAME, "--factory", "my_model:factory")
    assert ran.code == 2
    assert "--factory is for files that hold weights alone" in ran.err


def test_a_file_cannot_speak_to_the_terminal_through_its_name(tmp_path: Path) -> None:
    name = "model\x1b[2J.pt"
    prepared(tmp_path, "pickled module", NAME)
    (tmp_path / NAME).rename(name)
    ran = flowopt("explain", name)
    assert ran.code == 77
    assert "model\\x1b[2J.pt" in ran.err
    assert ran.err.replace("\n", "").isprintable()
