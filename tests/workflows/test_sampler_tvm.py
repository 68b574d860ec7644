"""Samplers for TVM: a function that calls itself, or copies, and both give the plain loop's samples."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from tvm.support.cc import get_cc

import flowopt
from flowopt.errors import UserError
from flowopt.ir.loop_spec import Form
from flowopt.sampling import ClassifierFree, make_sampler
from tests.sampling.networks import CHANNELS, SIZE, Labelled, Timed, by_hand, captured, relative
from tests.sampling.samplers import euler, heun, noisy

TOLERANCE = 3e-6


pytestmark = pytest.mark.skipif(get_cc() is None, reason="no C++ compiler on the PATH to link a library with")


def noise(batch: int, *leading: int) -> Tensor:
    return torch.randn(*leading, batch, CHANNELS, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def test_a_function_that_calls_itself_makes_the_loops_samples_at_any_batch(tmp_path: Path) -> None:
    module, spec = Timed(), euler(7)
    result = flowopt.optimize_sampler(captured(module), spec, target="tvm", folder=tmp_path / "out")
    assert result.report.outcome == "verified"
    assert result.artifact is not None
    assert json.loads((tmp_path / "out" / "report.json").read_text())["loop"]["form"] == "function"
    for batch in (1, 4):
        with torch.no_grad():
            wanted = by_hand(spec, lambda x, t: module(x, torch.full((len(x),), t[0])), noise(batch))
        found = result.artifact.run(noise(batch))
        assert isinstance(found, Tensor)
        assert relative(found, wanted) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("form", ["copies", "function"])
def test_both_forms_hold_guidance_noise_and_several_states(form: Form, tmp_path: Path) -> None:
    for at, spec in enumerate((heun(3), make_sampler("dpmpp-2m", 5, "karras", "diffusers-flow"), noisy(5))):
        folded = flowopt.optimize_sampler(
            captured(Labelled()),
            spec,
            guidance=ClassifierFree(3.0, {"label": 9}),
            target="tvm",
            form=form,
            folder=tmp_path / str(at),
        )
        assert folded.report.outcome == "verified"
        assert folded.report.loop is not None
        assert folded.report.loop.form == form


@pytest.mark.slow
def test_a_thousand_steps_run(tmp_path: Path) -> None:
    spec = make_sampler("euler", 1000, convention="rectified-flow")
    result = flowopt.optimize_sampler(captured(Timed()), spec, target="tvm", folder=tmp_path / "out", verify="off")
    assert result.artifact is not None
    found = result.artifact.run(noise(2))
    wanted = result.program.run(noise(2))
    assert isinstance(found, Tensor)
    assert isinstance(wanted, Tensor)
    assert relative(found, wanted) < 1e-4


def test_forms_of_onnx_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a form of ONNX"):
        flowopt.optimize_sampler(
            captured(Timed()), euler(3), target="tvm", form="scan", folder=tmp_path / "out", verify="off"
        )
