from pathlib import Path

import pytest
import torch

import flowopt
from flowopt.errors import UserError
from flowopt.measuring.competitors import prepared
from flowopt.measuring.contender import Contender
from flowopt.measuring.inputs import inputs_of_program, inputs_of_specs
from flowopt.measuring.runners import opened
from flowopt.program.interface import TensorSpec
from flowopt.program.program import Program
from flowopt.program.to_exported import to_exported

SIZES = {"batch": 4, "sequence": 40}


def test_ids_are_valid_and_masks_hide_nothing(program: Program) -> None:
    found = inputs_of_program(program, SIZES)
    assert list(found) == ["ids", "mask"]
    ids = found["ids"]
    assert ids.shape == found["mask"].shape == (4, 40)
    assert int(ids.min()) >= 0 and int(ids.max()) < 11 and len(ids.unique()) > 3
    assert torch.equal(found["mask"], torch.ones(4, 40, dtype=torch.int64))
    program.run_named(found)


def test_they_are_the_same_every_time(program: Program) -> None:
    first, second = inputs_of_program(program, SIZES), inputs_of_program(program, SIZES)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["ids"], inputs_of_program(program, SIZES, seed=1)["ids"])


@pytest.mark.slow
def test_state_is_as_stored_for_every_runtime(tmp_path: Path) -> None:
    program = flowopt.load("tests.measuring.models:stateful")
    found = inputs_of_program(program, {})
    (state,) = [one for one in program.inputs if one.state is not None]
    assert torch.equal(found[state.name], torch.full((3,), 4.0))
    flowopt.optimize(program, folder=tmp_path / "out", verify="off")
    torch.export.save(to_exported(program), tmp_path / "reference.pt2")
    (plain,), failures = prepared(("ort",), "tests.measuring.models:stateful", tmp_path)
    assert failures == {}
    contenders = [
        Contender("ours", "artifact", str(tmp_path / "out")),
        Contender("eager", "eager", "tests.measuring.models:stateful"),
        Contender("archive", "eager", str(tmp_path / "reference.pt2")),
        plain,
    ]
    for contender in contenders:
        _, outputs = opened(contender, found, 1)
        torch.testing.assert_close(outputs()[0], found["x"] + 5.0)


def test_an_artifact_alone_gets_ones_as_integers() -> None:
    specs = (
        TensorSpec("ids", torch.int64, ("batch", 3)),
        TensorSpec("x", torch.float32, ("batch", 2)),
    )
    found = inputs_of_specs(specs, {"batch": 2})
    assert torch.equal(found["ids"], torch.ones(2, 3, dtype=torch.int64))
    assert found["x"].shape == (2, 2) and found["x"].std() > 0


def test_a_size_that_only_the_reference_knows_is_asked_for() -> None:
    with pytest.raises(UserError, match="has size '2\\*batch'") as caught:
        inputs_of_specs((TensorSpec("x", torch.float32, ("2*batch",)),), {"batch": 2})
    assert "--reference" in caught.value.hint
