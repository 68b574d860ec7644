"""A network and a sampler become one verified file."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy
import pytest
import torch
from torch import Tensor

import flowopt
from flowopt.cli.main import main
from flowopt.errors import UserError
from flowopt.ir.loop_spec import Form
from flowopt.sampling import ClassifierFree, SamplerSpec, make_sampler
from tests.sampling.networks import CHANNELS, SIZE, Labelled, Timed, WithVariance, by_hand, captured, relative
from tests.sampling.samplers import averaged, euler, heun, noisy

TOLERANCE = 3e-6


def noise(batch: int, *leading: int) -> Tensor:
    return torch.randn(*leading, batch, CHANNELS, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def test_the_file_makes_the_loops_samples_at_any_batch(tmp_path: Path) -> None:
    module, spec = Timed(), heun(3)
    result = flowopt.optimize_sampler(captured(module), spec, folder=tmp_path / "out")
    assert result.report.outcome == "verified"
    assert result.artifact is not None
    for batch in (1, 4):
        with torch.no_grad():
            wanted = by_hand(spec, lambda x, t: module(x, torch.full((len(x),), t[0])), noise(batch))
        found = result.artifact.run(noise(batch))
        assert isinstance(found, Tensor)
        assert relative(found, wanted) < TOLERANCE


def test_the_report_tells_of_the_loop(tmp_path: Path) -> None:
    result = flowopt.optimize_sampler(captured(Timed()), noisy(6), folder=tmp_path / "out")
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    loop = written["loop"]
    assert (loop["sampler"], loop["evaluations"], loop["state"], loop["draws"]) == ("noisy", 6, 1, 6)
    assert loop["form"] == "scan"
    assert loop["removed_bytes"] > loop["table_bytes"] > 0
    assert [case["case"] for case in loop["cases"]] == ["traced[batch=3]", "smallest[batch=1]"]
    assert all(len(case["step_errors"]) == 6 for case in loop["cases"])
    assert result.report.loop is not None
    assert result.report.loop.cases[0].step_error < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("form", ["scan", "loop", "function", "copies"])
def test_every_form_is_verified(form: Form, tmp_path: Path) -> None:
    guidance = ClassifierFree(3.0, {"label": 9})
    result = flowopt.optimize_sampler(
        captured(Labelled()),
        euler(5),
        guidance=guidance,
        form=form,
        folder=tmp_path / "out",
    )
    assert result.report.outcome == "verified"
    assert result.report.loop is not None
    assert result.report.loop.form == form


@pytest.mark.slow
def test_a_torch_archive_with_a_scale_as_an_input(tmp_path: Path) -> None:
    guidance = ClassifierFree(None, {"label": 9})
    result = flowopt.optimize_sampler(
        captured(Labelled()), euler(2), guidance=guidance, target="torch", folder=tmp_path / "out"
    )
    assert result.report.outcome == "verified"
    assert result.artifact is not None
    assert [i.name for i in result.artifact.inputs] == ["noise", "label", "guidance_scale"]


def test_passes_rewrite_the_step() -> None:
    result = flowopt.optimize_sampler(captured(Timed()), euler(1), dry_run=True)
    assert result.report.applied_count("fold-scale") + result.report.applied_count("fold-norm-affine") > 0


def test_a_librarys_loop_that_disagrees_is_a_difference_and_nothing_is_written(tmp_path: Path) -> None:
    module, spec = Timed(), euler(4)

    def library(inputs: Mapping[str, Tensor]) -> Tensor:
        with torch.no_grad():
            # One time too early: the classical off-by-one.
            return by_hand(spec, lambda x, t: module(x, torch.full((len(x),), t[0] - 0.25)), inputs["noise"])

    result = flowopt.optimize_sampler(
        captured(module),
        spec,
        folder=tmp_path / "out",
        library=library,
    )
    assert result.report.outcome == "different"
    assert [f.gate for f in result.verdict.findings] == ["library", "library"]
    assert result.artifact is None
    assert not (tmp_path / "out").exists()


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    result = flowopt.optimize_sampler(captured(Timed()), euler(3), folder=tmp_path / "out", dry_run=True)
    assert result.report.outcome == "dry-run"
    assert result.artifact is None
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_without_verification_nothing_is_compared(tmp_path: Path) -> None:
    result = flowopt.optimize_sampler(captured(Timed()), euler(3), folder=tmp_path / "out", verify="off")
    assert result.report.outcome == "not-verified"
    assert result.report.loop is not None
    assert not result.report.loop.cases
    assert result.artifact is not None


def test_two_times_for_a_network_of_one_are_refused() -> None:
    with pytest.raises(UserError, match="gives the network 2 time"):
        flowopt.optimize_sampler(captured(Timed()), averaged(3))


@pytest.mark.slow
def test_a_sampler_by_name(tmp_path: Path) -> None:
    spec = make_sampler("heun", 4, "shift:3", "diffusers-flow")
    result = flowopt.optimize_sampler(captured(Timed()), spec, folder=tmp_path / "out")
    assert result.report.outcome == "verified"
    assert result.report.loop is not None
    assert result.report.loop.evaluations == 7


@pytest.mark.slow
def test_an_artifact_says_that_it_is_a_sampler(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flowopt.optimize_sampler(captured(Timed()), heun(2), form="loop", folder=tmp_path / "out")
    assert main(["inspect", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "sampler heun: 4 evaluations, 2 tensors of state, form loop" in shown
    assert "equivalent      2" in shown


def test_a_table_in_float32_is_verified_as_well_as_it_is_known(tmp_path: Path) -> None:
    exact = make_sampler("dpmpp-2m", 20, "karras", "diffusers-flow")
    table = exact.table.astype(numpy.float32).astype(float)
    eps = float(numpy.finfo(numpy.float32).eps)
    rounded = SamplerSpec("rounded", exact.times, table, relative_precision=eps)
    result = flowopt.optimize_sampler(captured(Timed()), rounded, verify="final", folder=tmp_path / "out")
    assert result.report.outcome == "verified"
    assert result.report.loop is not None
    assert max(case.fold_error for case in result.report.loop.cases) > 1e-9


def test_a_learned_variance_that_is_not_read_is_noted() -> None:
    result = flowopt.optimize_sampler(captured(WithVariance()), euler(2, scale=800), dry_run=True)
    assert result.report.loop is not None
    assert "the others are a learned variance" in result.report.loop.notes[-1]
