"""What is wrong with a command line of ``flowopt adapt``, or with its data: one error in one screen."""

from pathlib import Path
from typing import Any

import numpy
import pytest

from tests.cli.command import flowopt, model, refused
from tests.workflows.adapting.tiny import HERE, labelled, pre_norm_program

MODEL = f"{HERE}:pre_norm"
# It fails when it is loaded.
BROKEN = model("broken")
SWAP = ("--swap-norm", "unified", "--data", "images.npz")
LINEAR = ("--linearize", "hedgehog", "--data", "images.npz")
SELECT = ("--recalibrate", "select", "--data", "images.npz")


@pytest.fixture(autouse=True)
def data() -> None:
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in labelled(128, seed=1).items()}
    numpy.savez("images.npz", **arrays)


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is there at once: capturing it takes longer than all the rest."""
    monkeypatch.setattr("flowopt.cli.adapt.load_model", lambda *_: pre_norm_program().copy())


@pytest.mark.parametrize(
    ("options", "complaint", "hint"),
    [
        ((), "adapt does one thing: --swap-norm, --linearize or --recalibrate", "--swap-norm unified --data FILE"),
        (("--data", "images.npz"), "adapt does one thing", "--swap-norm unified"),
        ((*SWAP, "--recalibrate", "select"), "adapt does one thing", "--swap-norm unified"),
        ((*SWAP, "--linearize", "hedgehog"), "adapt does one thing", "--swap-norm unified"),
        (("--linearize", "hedgehgo", "--data", "x"), "'hedgehgo' is no linear attention", "did you mean hedgehog?"),
        (("--linearize", "hybird", "--data", "x"), "'hybird' is no linear attention", "chunk-hybrid, combiner"),
        ((*LINEAR, "--keep-softmax", "1"), "keep_softmax=1.0 is no share", "0.25 keeps softmax in every fourth layer"),
        ((*LINEAR, "--window", "8"), "--window is of hybrid", "hedgehog takes --chunk"),
        (
            ("--linearize", "hybrid", "--form", "recurrent", "--data", "x"),
            "hybrid cannot be lowered as a step; mean, elu, relu, favor, cosformer, hedgehog, t2r and flow can",
            "form='parallel'",
        ),
        ((*LINEAR, "--norms", "0"), "--norms is of --swap-norm", "leave it out where attention is linearized"),
        ((*LINEAR, "--settle", "0.5"), "--settle is of --swap-norm", "leave it out where attention is linearized"),
        ((*LINEAR, "--recover", "ridge"), "'ridge' is no step of this recovery", "--recover transfer,distill"),
        ((*LINEAR, "--transfer-steps", "0"), "invalid value for '--transfer-steps'", "flowopt adapt --help"),
        ((*SWAP, "--keep-softmax", "0.5"), "--keep-softmax is of --linearize", "leave it out where norms are swapped"),
        ((*SWAP, "--recover", "transfer"), "'transfer' is no step of this recovery", "--recover ridge,distill"),
        ((*SWAP, "--target-weight", "1"), "--target-weight is of --recalibrate", "leave it out where norms are"),
        ((*SELECT, "--lora", "4"), "--lora is of --swap-norm and --linearize", "recalibration trains nothing"),
        ((*SELECT, "--window", "4"), "--window is of --linearize", "recalibration trains nothing"),
        (("--swap-norm", "unified"), "there is no data", "--data images.npz, arrays by input name"),
        (
            ("--swap-norm", "unifide", "--data", "x"),
            "'unifide' is not one of 'unified', 'power'",
            "flowopt adapt --help",
        ),
        ((*SWAP, "--recover", "rigde"), "'rigde' is no step of recovery", "did you mean ridge?"),
        ((*SWAP, "--recover", "ridge,ridge"), "a step of recovery stands twice", None),
        ((*SWAP, "--resume"), "there is nothing to resume from", "--checkpoint FILE --resume"),
        ((*SWAP, "--recover", "none", "--checkpoint", "state"), "only distillation saves", "--recover distill"),
        ((*SWAP, "--lr", "0"), "learning_rate=0.0: it must be a number above 0", "such as"),
        ((*SWAP, "--minutes", "0"), "minutes=0.0 is a number above 0", "leave it out for no limit"),
        ((*SWAP, "--steps", "0"), "invalid value for '--steps'", "flowopt adapt --help"),
        ((*SWAP, "--loss", "l1"), "no loss 'l1'", "kl, mse, cosine, or package.module:function"),
        ((*SWAP, "--min-cosine", "2"), "min_cosine=2.0 is a number from 0 to 1", "such as 0.99"),
        ((*SWAP, "--max-drop", "-1"), "max_drop=-1.0 is a number from 0", "such as 0.005"),
        ((*SWAP, "--target", "gpu"), "gpu", None),
        ((*SWAP, "--dry-rum"), "no such option: --dry-rum", "flowopt adapt --help"),
    ],
)
def test_words_that_mean_nothing_are_exit_2_before_the_model_is_loaded(
    options: tuple[str, ...], complaint: str, hint: str | None
) -> None:
    ran = flowopt("adapt", BROKEN, *options)
    assert (ran.code, ran.out) == (2, "") and complaint in ran.err
    if hint is not None:
        assert hint in refused(ran).split("  try   ")[1]


@pytest.mark.usefixtures("captured")
@pytest.mark.parametrize(
    ("options", "code", "complaint", "hint"),
    [
        (("--norms", "decoder.*"), 2, "'decoder.*' names no norm", "0: add_tensor in blocks.0.norm1"),
        (("--norms", "best:9"), 2, "best:9 of 5 norms", "a number from 1 to 5"),
        (("--norms", "post"), 2, "'post' names no norm", "the model's norms are"),
        (("--threshold", "0.01"), 2, "none of 5 norms can be replaced", "a higher --threshold, or --force"),
        (("--metric", "accuracy:lables", "--force"), 2, "the data has no array 'lables'", "it has patches, labels"),
        (("--metric", "accuracy"), 2, "accuracy of what?", "accuracy:labels"),
        (("--metric", "f1"), 2, "the metric 'f1' is not known", "package.module:function"),
        (("--max-drop", "0.1"), 2, "max_drop limits a metric, and none was given", "--metric accuracy:labels"),
        (("--held-out", "1.5"), 2, "held_out=1.5 is a fraction from 0 to below 1", "such as 0.1"),
        (("--held-out", "none.npz"), 66, "no file or folder of data none.npz", "numpy.savez"),
        (("--held-out", "images.npz"), 2, "images.npz is what recovery trains on", "held_out=0.1"),
        (("--held-out", "0"), 2, "there is no held-out data to measure on", "--held-out FILE"),
        (("--padding", "patches"), 2, "'patches' is no input of shape (batch, tokens)", "inputs: patches; or none"),
        (("--output", "logits"), 2, "no floating output 'logits'", "its floating outputs: output"),
        (("--loss", "tests.absent:loss"), 66, "tests.absent", None),
        (("--batch-size", "1", "--calibration", "1"), 2, "a fit needs samples to be judged by", "--recover distill"),
        (("--data", "absent.npz"), 66, "no file or folder of data absent.npz", "or name a function"),
        (("--data", "tests.absent:batches"), 66, "tests.absent", None),
    ],
)
def test_what_does_not_fit_the_model_or_the_data_says_what_does(
    options: tuple[str, ...], code: int, complaint: str, hint: str | None
) -> None:
    ran = flowopt("adapt", MODEL, *SWAP, *options, "-o", "out")
    message = refused(ran, code)
    assert complaint in message.split("  try   ")[0]
    assert hint is None or hint in message.split("  try   ")[1]
    assert not Path("out").exists()


def written(**arrays: Any) -> None:
    numpy.savez("other.npz", **arrays)


def patches(*sizes: int) -> Any:
    return numpy.random.default_rng(0).standard_normal(sizes, dtype=numpy.float32)


def with_nan() -> Any:
    array = patches(64, 5, 6)
    array[3, 1, 2] = numpy.nan
    return array


@pytest.mark.usefixtures("captured")
@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({"patches": patches(64, 5, 4)}, "float32[1, 5, 4], but the model takes patches: float32[batch, 5, 6]"),
        ({"patches": patches(64, 30)}, "but the model takes patches: float32[batch, 5, 6]"),
        ({"pixels": patches(64, 5, 6)}, "other.npz holds no array with an input's name, but pixels"),
        ({"patches": with_nan()}, "other.npz: 'patches' holds a NaN, first in row 3 (1 of 1,920 values"),
        ({"patches": patches(64, 5, 6).astype(int)}, "'patches' is int64, but the model takes float32"),
        ({"patches": patches(64, 5, 6), "labels": patches(63)}, "arrays of different length: patches 64, labels 63"),
        ({"patches": patches(0, 5, 6)}, "other.npz holds no samples"),
        ({"patches": patches(1, 5, 6)}, "other.npz has no batch to hold out"),
        ({}, "other.npz holds no arrays"),
    ],
)
def test_data_that_does_not_fit_is_exit_2(arrays: dict[str, Any], complaint: str) -> None:
    written(**arrays)
    ran = flowopt("adapt", MODEL, "--swap-norm", "unified", "--data", "other.npz", "-o", "out")
    assert complaint in refused(ran)
    assert not Path("out").exists()


@pytest.mark.usefixtures("captured")
def test_an_empty_folder_of_data_is_exit_2() -> None:
    Path("data").mkdir()
    ran = flowopt("adapt", MODEL, "--swap-norm", "unified", "--data", "data", "-o", "out")
    assert "the folder data holds no .npz or .safetensors file" in refused(ran)


@pytest.mark.usefixtures("captured")
@pytest.mark.parametrize("rate", ["1e8", "1e30"])
def test_a_diverging_loss_is_exit_1_and_writes_nothing(rate: str) -> None:
    ran = flowopt("adapt", MODEL, *SWAP, "--force", "--lr", rate, "-o", "out", "--json", "out.json")
    message = refused(ran, 1)
    assert "a smaller learning rate" in message and "Traceback" not in ran.err
    assert not Path("out").exists() and not Path("out.json").exists()


@pytest.mark.usefixtures("captured")
def test_a_folder_with_other_files_is_exit_73_before_the_work() -> None:
    Path("out").mkdir()
    Path("out/thesis.txt").write_text("mine")
    assert "holds no flowopt artifact: thesis.txt" in refused(flowopt("adapt", MODEL, *SWAP, "-o", "out"), 73)
    assert [path.name for path in Path("out").iterdir()] == ["thesis.txt"]


@pytest.mark.usefixtures("captured")
def test_a_checkpoint_that_is_there_is_not_overwritten_unasked() -> None:
    Path("state").write_text("of another run")
    ran = flowopt("adapt", MODEL, *SWAP, "--force", "--recover", "distill", "--checkpoint", "state", "-o", "out")
    assert "state is there already" in refused(ran)
    assert Path("state").read_text() == "of another run" and not Path("out").exists()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("swap-norm", "--swap-norm unified --data FILE"),
        ("swap-norm:to=power", "--swap-norm unified --data FILE"),
        ("recalibrate-batch-norm", "--swap-norm unified --data FILE"),
        ("linearize-attention", "--linearize hybrid --data FILE"),
    ],
)
def test_passes_that_are_measured_on_data_are_no_part_of_a_pipeline(name: str, hint: str) -> None:
    message = refused(flowopt("optimize", BROKEN, "--passes", name))
    assert "which a pipeline does not have" in message
    assert f"flowopt adapt MODEL {hint}" in message
