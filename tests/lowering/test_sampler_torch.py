"""A sampler as a torch archive: an unrolled program, and what it computes."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flowopt.errors import InternalError, UserError
from flowopt.ir.legality import violations
from flowopt.lowering.staging import Staging
from flowopt.lowering.torch import lower_sampler_to_torch
from flowopt.program.sampler_program import SamplerProgram
from flowopt.program.unrolled import unrolled
from flowopt.runtime.artifact import Artifact
from flowopt.runtime.interface import described_interface
from tests.lowering.sampler_programs import SAMPLERS, inputs, mlp

SIZES = ({"batch": 1, "length": 1, "words": 2}, {"batch": 5, "length": 6, "words": 3})


def require_equal(got: Tensor | dict[str, Tensor], wanted: Tensor | dict[str, Tensor]) -> None:
    """The very same operators ran on the very same numbers."""
    first, second = ({"": one} if isinstance(one, Tensor) else one for one in (got, wanted))
    assert list(first) == list(second)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def build(program: SamplerProgram, folder: Path) -> Path:
    report = {"target": "torch", "interface": described_interface(program.interface)}
    with Staging(folder) as staging:
        lowered = lower_sampler_to_torch(program, staging)
        staging.commit(lowered.model, "model.pt2", json.dumps(report))
    return folder


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_an_unrolled_sampler_is_a_legal_program_that_computes_the_same(name: str, steps: int) -> None:
    program = SAMPLERS[name](steps)
    whole = unrolled(program)
    assert list(violations(whole.graph, whole.tensors)) == []
    assert whole.interface == program.interface
    for sizes in SIZES:
        feed = inputs(program, sizes)
        require_equal(whole.run(**feed), program.run(**feed))


def test_an_unrolled_sampler_shares_its_tensors() -> None:
    program = mlp(3)
    whole = unrolled(program)
    assert whole.tensors["step.hidden.weight"] is program.step.tensors["hidden.weight"]
    assert whole.tensors["table.row"] is program.loop.tables["row"]
    assert "table.spare" not in whole.tensors


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_the_archive_runs_like_the_sampler(tmp_path: Path, name: str) -> None:
    program = SAMPLERS[name](2)
    artifact = Artifact.open(build(program, tmp_path / "a"), trust="code")
    for sizes in SIZES:
        feed = inputs(program, sizes)
        require_equal(artifact.run(**feed), program.run(**feed))


@pytest.mark.slow
def test_an_archive_opens_without_trust_and_refuses_a_wrong_shape(tmp_path: Path) -> None:
    program = mlp(7)
    artifact = Artifact.open(build(program, tmp_path / "a"))
    feed = inputs(program, {"batch": 3})
    require_equal(artifact.run(**feed), program.run(**feed))
    with pytest.raises(UserError, match=r"noise: float32\[batch, 8\]"):
        artifact.run(noise=torch.randn(2, 9), label=torch.tensor([1, 2]))


def test_the_same_sampler_gives_the_same_archive_in_another_folder(tmp_path: Path) -> None:
    first, second = (build(mlp(3), tmp_path / name) / "model.pt2" for name in ("a", "longer"))
    assert first.read_bytes() == second.read_bytes()
    for text in (str(tmp_path), str(Path(__file__).parents[2]), "site-packages"):
        assert text.encode() not in first.read_bytes()


def test_too_many_steps_are_refused_before_anything_is_copied(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="which has no loop"):
        build(mlp(1000), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_parts_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    program = mlp(2)
    tables = {**program.loop.tables, "time": program.loop.tables["time"].int()}
    with pytest.raises(InternalError, match=r"the table of 'time' is torch\.int32"):
        build(dataclasses.replace(program, loop=dataclasses.replace(program.loop, tables=tables)), tmp_path / "a")


def test_what_cannot_be_unrolled_is_named() -> None:
    program = mlp(2)
    with pytest.raises(InternalError, match="raised"):
        unrolled(program.raised_copy())
    tables = {name: table for name, table in program.loop.tables.items() if name != "gain"}
    without = dataclasses.replace(program, loop=dataclasses.replace(program.loop, tables=tables))
    with pytest.raises(InternalError, match="nothing supplies the step's input 'gain'"):
        unrolled(without)
