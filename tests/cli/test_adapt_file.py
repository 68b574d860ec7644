"""``flowopt adapt --config adapt.toml``: the options of a file, which those of the command line win over."""

from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import flowopt
from tests.workflows.adapting.tiny import HERE, pre_norm_program

BROKEN = "tests.cli.samplers:broken"

FILE = """
swap-norm = "power"
data = "images.npz"
held-out = 0.2
norms = [0, 2]
threshold = 0.25
force = true
recover = "match,distill"
steps = 40
lr = 1e-3
loss = "kl"
output = ["output"]
min-cosine = 0.9
no-timing = true
"""


class Reached(BaseException):
    """The library was called."""


def given(monkeypatch: pytest.MonkeyPatch, content: str, *options: str) -> dict[str, Any]:
    """The arguments that reach the library."""
    seen: list[dict[str, Any]] = []

    def note(_: object, **arguments: Any) -> None:
        seen.append(arguments)
        raise Reached

    monkeypatch.setattr("flowopt.cli.adapt.load_model", lambda *_: pre_norm_program().copy())
    monkeypatch.setattr("flowopt.workflows.adapt.adapt", note)
    Path("adapt.toml").write_text(content)
    with pytest.raises(Reached):
        flowopt("adapt", f"{HERE}:pre_norm", "--config", "adapt.toml", *options)
    (found,) = seen
    return found


def test_a_file_says_what_the_options_say(monkeypatch: pytest.MonkeyPatch) -> None:
    found = given(monkeypatch, FILE)
    assert (found["swap_norm"], found["recalibrate"], found["data"]) == ("power", None, "images.npz")
    assert (found["held_out"], found["norms"], found["threshold"], found["force"]) == (0.2, "0,2", 0.25, True)
    plan = found["recovery"]
    assert (plan.steps, plan.settings.steps, plan.settings.loss) == (("match", "distill"), 40, "kl")
    assert plan.settings.learning_rate == 1e-3
    assert (list(found["outputs"]), found["budget"].min_cosine, found["timing"]) == (["output"], 0.9, False)


LINEAR = """
linearize = "hybrid"
data = "tokens.npz"
layers = [0, 2]
keep-softmax = 0.25
keep-by = "effect"
length = 4096
window = 32
chunk = 16
transfer-steps = 50
transfer-lr = 0.03
lora = 4
"""


def test_a_file_says_how_attention_is_linearized(monkeypatch: pytest.MonkeyPatch) -> None:
    found = given(monkeypatch, LINEAR)
    assert (found["swap_norm"], found["linearize"], found["layers"]) == (None, "hybrid", "0,2")
    assert (found["keep_softmax"], found["keep_by"], found["length"]) == (0.25, "effect", 4096)
    assert found["attention"] == {"window": 32, "chunk": 16}
    plan = found["recovery"]
    assert (plan.steps, plan.transfer_steps, plan.settings.lora_rank) == (("transfer", "distill"), 50, 4)
    assert plan.transfer_learning_rate == 0.03


def test_the_command_line_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--swap-norm", "unified", "--steps", "7", "--norms", "best:3", "--held-out", "other.npz")
    found = given(monkeypatch, FILE, *options)
    assert (found["swap_norm"], found["norms"], found["held_out"]) == ("unified", "best:3", "other.npz")
    # What it does not say stays as in the file.
    assert (found["recovery"].settings.steps, found["recovery"].settings.loss) == (7, "kl")


@pytest.mark.parametrize(
    ("content", "complaint", "hint"),
    [
        (None, "adapt.toml", "check the path"),
        ("swap-norm = ", "adapt.toml is not TOML", 'such as swap-norm = "unified"'),
        ("stpes = 3", "adapt.toml: stpes is no option of flowopt adapt", "did you mean steps"),
        ("swap_norm = 'unified'", "adapt.toml: swap_norm is no option", "did you mean swap-norm"),
        ("[recovery]\nsteps = 3", "adapt.toml: recovery is no option", "recover"),
        ("debug = true", "adapt.toml: debug is no option", ""),
        ("steps = true", "steps must be a text or a number", "--steps"),
        ('force = "yes"', "force must be true or false", "--force"),
        ("output = 3", "output is not a list of texts", "output = "),
        ('steps = "many"', "invalid value for '--steps'", ""),
        ('swap-norm = "unifide"', "'unifide' is not one of", ""),
        ('swap-norm = "unified"', "there is no data", "--data images.npz"),
        ('linearize = "elu"\ndata = "x"\nthreshold = 0.2', "--threshold is of --swap-norm", "leave it out"),
    ],
)
def test_what_is_wrong_in_a_file_is_exit_2_before_the_model_is_loaded(
    content: str | None, complaint: str, hint: str
) -> None:
    if content is not None:
        Path("adapt.toml").write_text(content)
    ran = flowopt("adapt", BROKEN, "--config", "adapt.toml")
    assert (ran.code, ran.out) == (2, "")
    assert complaint in ran.err.splitlines()[0]
    assert hint in ran.err


def test_the_help_shows_a_file_as_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = flowopt("adapt", "--help").out
    lines = shown[shown.index("adapt.toml:\n") :].split("\n\n")[0].splitlines()[1:]
    found = given(monkeypatch, "\n".join(line.strip() for line in lines))
    assert (found["swap_norm"], found["data"]) == ("unified", "images.npz")
    assert (found["recovery"].settings.steps, list(found["outputs"])) == (1000, ["logits"])


def test_the_help_names_every_exit_code_of_its_own_and_examples() -> None:
    ran = flowopt("adapt", "--help")
    assert ran.code == 0
    for text in ("--swap-norm", "--recalibrate", "--dry-run", "Exit codes: 0 adapted, 1 beyond the budget", "torchrun"):
        assert text in ran.out
