"""``--config sampler.toml``: the options of a file, which those of the command line win over."""

from pathlib import Path
from typing import Any

import pytest

from flowopt.sampling import Epilogue
from tests.cli.command import flowopt

MODEL = "tests.cli.samplers:labelled"
BROKEN = "tests.cli.samplers:broken"

FILE = """
solver = "heun"
steps = 3
schedule = "shift:3"
form = "loop"
strict = true
skip = ["simplify-shapes"]

[convention]
name = "diffusers-flow"
time_scale = 1.0

[guidance]
scale = 4
unconditional = { label = 9 }
channels = 3

[output]
shift = 0.5
clamp = [-1, 1.5]
"""


class Reached(BaseException):
    """The library was called."""


def given(monkeypatch: pytest.MonkeyPatch, content: str, *options: str) -> tuple[Any, dict[str, Any]]:
    """The table and the arguments that reach the library."""
    seen: list[Any] = []

    def note(_: object, spec: object, **arguments: Any) -> None:
        seen.append((spec, arguments))
        raise Reached

    monkeypatch.setattr("flowopt.workflows.sampler.optimize_sampler", note)
    Path("sampler.toml").write_text(content)
    with pytest.raises(Reached):
        flowopt("sampler", MODEL, "--config", "sampler.toml", *options)
    (found,) = seen
    return found


def test_a_file_says_what_the_options_say(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, arguments = given(monkeypatch, FILE)
    assert (spec.name, spec.evaluations, spec.times[0]) == ("heun", 5, (1.0,))
    guidance = arguments["guidance"]
    assert (guidance.scale, dict(guidance.unconditional), guidance.channels) == (4.0, {"label": 9.0}, 3)
    assert guidance.difference == "from-unconditional"
    assert arguments["output"] == Epilogue(1.0, 0.5, (-1.0, 1.5))
    assert arguments["form"] == "loop"
    assert "simplify-shapes" not in arguments["passes"].text()


def test_the_command_line_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--steps", "2", "--form", "scan", "--set", "time_scale=10", "--guidance", "cfg-original:1")
    spec, arguments = given(monkeypatch, FILE, *options, "--unconditional", "label=8", "--clamp", "-2..2")
    assert (spec.evaluations, spec.times[0], arguments["form"]) == (3, (10.0,), "scan")
    guidance = arguments["guidance"]
    assert (guidance.scale, guidance.difference) == (1.0, "from-conditional")
    # What it does not say stays as in the file.
    assert (dict(guidance.unconditional), guidance.channels) == ({"label": 8.0}, 3)
    assert arguments["output"] == Epilogue(1.0, 0.5, (-2.0, 2.0))


def test_another_convention_comes_without_the_fields_of_the_files(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, _ = given(monkeypatch, FILE, "--convention", "instaflow")
    assert spec.times[0] == (1000.0,)


def test_lists_and_flat_keys_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    content = """
    solver = "euler"
    schedule = [1, 0.5, 0]
    convention = "diffusers-flow"
    set = ["time_scale=1"]
    guidance = "cfg:1,4"
    unconditional = ["label=9"]
    output-scale = 0.5
    time = ["t"]
    """
    spec, arguments = given(monkeypatch, content)
    assert spec.times == ((1.0,), (0.5,))
    assert arguments["guidance"].scale == (1.0, 4.0)
    assert dict(arguments["guidance"].unconditional) == {"label": 9.0}
    assert arguments["output"] == Epilogue(0.5)


@pytest.mark.parametrize(
    ("content", "complaint", "hint"),
    [
        (None, "no sampler file sampler.toml", "check the path"),
        ("solver = ", "sampler.toml is not TOML", 'such as solver = "heun"'),
        ("stpes = 3", "sampler.toml: stpes is no option", "did you mean steps"),
        ("debug = true", "sampler.toml: debug is no option", ""),
        ("[guidence]\nscale = 4", "guidence is no option", "did you mean guidance"),
        ("[guidance]\nscal = 4", "guidance.scal is no key", "did you mean scale"),
        ("[guidance]\nchannels = 3", "guidance has no scale", 'scale = "input"'),
        ('[guidance]\nscale = 4\nfrom = "x"', "guidance.from is no guidance", 'from = "conditional"'),
        ("[output]\nclamp = 3", "output.clamp is not a list of two numbers", "clamp = [-1, 1]"),
        ("[convention]\ntime_scale = 1", "convention has no name", "diffusers-flow"),
        ('strict = "yes"', "strict must be true or false", "--strict"),
        ("steps = true", "steps must be a text or a number", "--steps"),
        ("skip = 3", "skip is not a list of texts", "skip = "),
        ("[steps]\nn = 3", "steps must be a text", ""),
        ('steps = "many"', "invalid value for '--steps'", ""),
        ('form = "scna"', "'scna' is not one of", ""),
        ('solver = "huen"\nsteps = 2\nconvention = "sit"', "no solver 'huen'", "did you mean heun"),
    ],
)
def test_what_is_wrong_in_a_file_is_exit_2_before_the_model_is_loaded(
    content: str | None, complaint: str, hint: str
) -> None:
    if content is not None:
        Path("sampler.toml").write_text(content)
    ran = flowopt("sampler", BROKEN, "--config", "sampler.toml")
    assert (ran.code, ran.out) == (2, "")
    assert complaint in ran.err.splitlines()[0]
    assert hint in ran.err


def test_the_help_shows_a_file_as_it_is_written() -> None:
    shown = flowopt("sampler", "--help").out
    lines = shown[shown.index("sampler.toml:\n") :].split("\n\n")[0].splitlines()[1:]
    content = "\n".join(line.strip() for line in lines)
    Path("sampler.toml").write_text(content)
    ran = flowopt("sampler", BROKEN, "--config", "sampler.toml")
    assert "loaded before the command line was understood" in ran.err
