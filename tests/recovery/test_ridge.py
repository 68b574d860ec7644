"""Layers behind swapped norms are refitted to the teacher's, one after another, where that holds on other data."""

import numpy as np
import pytest
import torch

from flowopt.errors import UserError
from flowopt.recovery.counted_rows import rows_of
from flowopt.recovery.observed import no_grad_walk, teacher_values
from flowopt.recovery.ridge import refit_linears
from flowopt.recovery.trainable import Trainable
from tests.recovery.swapped import batches, distance, linears, parameter, stored, swapped_student
from tests.recovery.tiny_transformer import tiny_program


def test_refitting_brings_the_student_nearer_to_the_teacher() -> None:
    student = swapped_student()
    before = distance(student)
    found = refit_linears(student, tiny_program(), batches(), ridge=1e-4)
    assert all(refit.is_kept and refit.after < refit.before for refit in found)
    assert distance(student) < 0.9 * before


def test_it_is_the_layers_that_read_norms_but_tied_ones_in_graph_order() -> None:
    student = swapped_student()
    program = student.program
    wanted = [name for name in linears(program) if ".qkv." in weight_of(name) or ".up." in weight_of(name)]
    assert [refit.layer for refit in refit_linears(student, tiny_program(), batches(4))] == wanted
    assert len(wanted) == 4


def weight_of(layer: str) -> str:
    return str(stored(tiny_program(), layer, 1).target)


def gains(layer: str) -> torch.Tensor:
    """Of the norm that a layer reads. One is zero: a weight for that channel can be anything."""
    program = tiny_program()
    return program.constant(stored(program, str(program.node(layer).args[0]), 2))


def test_a_layer_that_was_moved_comes_back() -> None:
    student, (first, *_) = Trainable(tiny_program(), padding="mask"), linears(tiny_program())
    wanted = parameter(student, first).detach().clone()
    with torch.no_grad():
        parameter(student, first).add_(torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1)))
        parameter(student, first, 2).zero_()
    (found,) = refit_linears(student, tiny_program(), batches(), ridge=1e-10, layers=[first])
    read = gains(first) != 0
    torch.testing.assert_close(parameter(student, first)[:, read].detach(), wanted[:, read], atol=1e-6, rtol=0)  # ridge
    assert found.before > 0.3 and found.after < 1e-6


def test_the_fit_is_the_direct_one_on_real_tokens() -> None:
    student, teacher = swapped_student().eval(), tiny_program()
    first = linears(teacher)[0]
    read = (gains(first) != 0).numpy()
    fitted, judged = batches(3), batches(2, seed=50)
    source = str(teacher.node(first).args[0])
    real = torch.cat([b["mask"].reshape(-1) == 1 for b in fitted]).numpy()
    x = np.concatenate([rows_of(no_grad_walk(student, b, [source])[source]).numpy() for b in fitted])[real]
    y = np.concatenate([rows_of(teacher_values(teacher, b, [first])[first]).numpy() for b in fitted])[real]
    (found,) = refit_linears(student, teacher, fitted, ridge=1e-12, layers=[first], held_out=judged, massive=1e9)
    expected = np.linalg.lstsq(np.column_stack([x, np.ones(len(x))]), y, rcond=None)[0]
    weight, bias = (parameter(student, first, at).detach().numpy() for at in (1, 2))
    np.testing.assert_allclose(weight[:, read], expected[:-1].T[:, read], atol=1e-7)  # condition squared
    direct = x @ expected[:-1] + expected[-1]
    np.testing.assert_allclose(x @ weight.T + bias, direct, atol=1e-7)  # the same
    assert found.vectors == real.sum()
    assert abs(found.fitted_after - np.linalg.norm(direct - y) / np.linalg.norm(y - y.mean(0))) < 1e-7


def test_each_layer_is_fitted_behind_those_that_are_refitted() -> None:
    student = swapped_student()
    found = refit_linears(student, tiny_program(), batches(), ridge=1e-6)
    last = found[-1]
    (again,) = refit_linears(student, tiny_program(), batches(), ridge=1e-6, layers=[last.layer])
    assert again.before == pytest.approx(last.after, rel=1e-6)


def test_a_fit_that_fails_on_other_data_is_not_kept() -> None:
    student = swapped_student()
    refit_linears(student, tiny_program(), batches())
    few = {name: tensor[:1] for name, tensor in batches(1)[0].items()}
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    found = refit_linears(student, tiny_program(), [few], ridge=1e-9, held_out=batches(2, seed=50))
    assert not any(refit.is_kept for refit in found)
    assert all(refit.after >= refit.before and refit.fitted_after < refit.fitted_before for refit in found)
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())


def test_padding_is_not_fitted_to() -> None:
    students = []
    for filler in (0, 7):
        student = swapped_student()
        given = [{**b, "ids": b["ids"].where(b["mask"] == 1, torch.tensor(filler))} for b in batches(4)]
        refit_linears(student, tiny_program(), given, padding="mask")
        students.append(student.state_dict())
    for name, tensor in students[0].items():
        torch.testing.assert_close(students[1][name], tensor, atol=1e-12, rtol=1e-12)  # sums in another order


def test_modes_and_statistics_stay() -> None:
    student = swapped_student().train()
    before = {name: buffer.clone() for name, buffer in student.named_buffers()}
    refit_linears(student, tiny_program(), batches(4))
    assert student.training and all(leaf.training for leaf in student.leaves.values())
    assert all(torch.equal(buffer, before[name]) for name, buffer in student.named_buffers())


def test_progress_is_told_by_layer() -> None:
    lines: list[str] = []
    found = refit_linears(swapped_student(), tiny_program(), batches(4), on_progress=lines.append)
    assert len(lines) == len(found) and " -> " in lines[0]


def test_a_tied_layer_cannot_be_named() -> None:
    with pytest.raises(UserError, match="cannot be refitted alone"):
        refit_linears(swapped_student(), tiny_program(), batches(4), layers=[linears(tiny_program())[-1]])


def test_what_is_no_linear_layer_cannot_be_named() -> None:
    with pytest.raises(UserError, match="'embedding' is no linear layer"):
        refit_linears(swapped_student(), tiny_program(), batches(4), layers=["embedding"])


def test_without_a_penalty_there_is_no_fit() -> None:
    with pytest.raises(UserError, match="ridge=0 must be above 0"):
        refit_linears(swapped_student(), tiny_program(), batches(4), ridge=0)


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_is_fitted_without_something_to_judge_by(count: int) -> None:
    one_sample = [{name: tensor[:1] for name, tensor in batches(1)[0].items()}]
    with pytest.raises(UserError, match="a fit needs samples to be judged by"):
        refit_linears(swapped_student(), tiny_program(), one_sample[:count])
