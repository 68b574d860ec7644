"""``--target tvm`` on the command line: what is wrong with the words, and one run from model to bench."""

import json
from pathlib import Path

import pytest
from tvm.support.cc import get_cc

from tests.cli.command import flowopt, model


@pytest.mark.parametrize("command", ["optimize", "sampler"])
def test_an_architecture_needs_a_target_that_compiles(command: str) -> None:
    ran = flowopt(command, model("folding"), "--arch", "sm_90")
    assert ran.code == 2
    assert "compiles for no architecture" in ran.err


def test_cuda_needs_an_architecture_and_the_command_is_given() -> None:
    ran = flowopt("optimize", model("folding"), "--target", "tvm-cuda")
    assert ran.code == 2
    assert f"flowopt optimize {model('folding')} --target tvm-cuda --arch sm_90" in ran.err


def test_forms_of_onnx_are_none_of_tvm() -> None:
    ran = flowopt("sampler", model("folding"), "--target", "tvm", "--form", "scan")
    assert ran.code == 2
    assert "--form copies or function" in ran.err


@pytest.mark.skipif(get_cc() is None, reason="no C++ compiler on the PATH to link a library with")
def test_a_model_becomes_a_library_that_is_verified_inspected_and_measured(tmp_path: Path) -> None:
    ran = flowopt("optimize", model("folding"), "--target", "tvm", "-o", "out")
    assert (ran.code, ran.err) == (0, "")
    assert ran.first == f"verified: 2 rewrites applied to {model('folding')} for tvm"
    assert "calls of kernels" in ran.out
    assert {"model.so", "report.json"} <= {p.name for p in Path("out").iterdir()}
    refused = flowopt("verify", model("folding"), "out")
    assert refused.code == 77
    assert f"flowopt verify {model('folding')} out --trust code" in refused.err
    verified = flowopt("verify", model("folding"), "out", "--trust", "code")
    assert (verified.code, verified.err) == (0, "")
    inspected = flowopt("inspect", "out", "--json", "-")
    assert json.loads(inspected.out)["model"] == "model.so"
    measured = flowopt("bench", "out", "--trust", "code", "--seconds", "1", "--json", "bench.json")
    assert (measured.code, measured.err) == (0, "")
    assert flowopt("bench", "out").code == 77
