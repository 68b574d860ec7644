"""Every runner computes the model."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flowopt.errors import UserError
from flowopt.measuring.contender import Contender, Kind
from flowopt.measuring.reference import eager_model, is_factory
from flowopt.measuring.runners import opened
from flowopt.program.program import Program
from flowopt.program.to_exported import to_exported
from tests.measuring.conftest import TINY
from tests.measuring.models import tiny

INPUTS = {"ids": torch.tensor([[3, 1, 4, 1]]), "mask": torch.tensor([[1, 1, 0, 1]])}


def expected() -> Tensor:
    result: Tensor = tiny()["module"](**INPUTS, scale=2.0)
    return result.detach()


def agrees(kind: Kind, path: object) -> None:
    threads = torch.get_num_threads()
    try:
        run, outputs = opened(Contender("one", kind, str(path)), INPUTS, 1)
        run()
        (found,) = outputs()
    finally:
        torch.set_num_threads(threads)
    # Three sums of at most 16 products in float32, in any order.
    torch.testing.assert_close(found, expected(), rtol=1e-5, atol=1e-5)


def test_an_artifact(artifact: Path) -> None:
    agrees("artifact", artifact)


def test_eager_torch_of_a_factory_keeps_the_factory_s_constants() -> None:
    agrees("eager", TINY)


def test_eager_torch_of_an_archive(program: Program, tmp_path: Path) -> None:
    torch.export.save(to_exported(program), tmp_path / "reference.pt2")
    agrees("eager", tmp_path / "reference.pt2")


@pytest.mark.slow
def test_compiled_torch() -> None:
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs g++")
    agrees("compile", TINY)


def test_onnxruntime(exported: Path) -> None:
    agrees("onnxruntime", exported)


def test_openvino(exported: Path) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    agrees("openvino", exported)


def test_inputs_inside_of_lists_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {"module": torch.nn.Identity(), "args": ([torch.ones(1)],)}
    monkeypatch.setattr("flowopt.measuring.reference.arguments_of_factory", lambda _: made)
    with pytest.raises(UserError, match="in lists or dictionaries"):
        eager_model("a.b:c", {})


@pytest.mark.parametrize(("text", "expected"), [("a.b:c", True), ("/a/b.pt2", False), ("C:\\a", False)])
def test_what_a_factory_is(text: str, expected: bool) -> None:
    assert is_factory(text) is expected
