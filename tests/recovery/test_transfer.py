"""Attention transfer: maps learn what softmax gives, and nothing else moves."""

import pytest
import torch
from torch import Tensor

from flowopt.errors import UserError
from flowopt.ops.attention import InPlaceOfSoftmax
from flowopt.recovery.observed import teacher_values
from flowopt.recovery.trainable import Trainable
from flowopt.recovery.transfer import transfer_attention
from tests.recovery.tiny_attention import (
    SHAPE,
    MappedAttention,
    attentions,
    linear_student,
    mean_leaves,
    tagger_program,
    texts,
)

BATCHES = [texts(16, seed=seed) for seed in range(8)]


def state_of(student: Trainable) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in student.state_dict().items()}


def test_the_error_falls_on_batches_that_were_not_trained_on() -> None:
    program = tagger_program()
    student = linear_student(program)
    lines: list[str] = []
    found = transfer_attention(student, program, BATCHES, steps=60, on_progress=lines.append)
    assert [one.site for one in found] == list(attentions(program))
    assert all(one.is_kept and one.after < 0.7 * one.before for one in found)
    assert [one.module for one in found] == ["blocks.0", "blocks.1"]
    assert sum(line.startswith("transfer, step") for line in lines) == 10 and len(lines) == 12


def test_the_error_is_that_of_the_outputs_over_real_queries() -> None:
    program = tagger_program()
    student = linear_student(program)
    judged = texts(16, seed=50)
    found = transfer_attention(student, program, BATCHES[:1], steps=10, held_out=[judged])
    fresh = linear_student(program)
    for one in found:
        read = attentions(program)[one.site]
        values = teacher_values(program, judged, [one.site, *read])
        real = (judged["mask"] == 1)[:, None, :].expand(-1, SHAPE.heads, -1)
        wanted = values[one.site][real]
        for leaf, error in ((fresh.leaves[one.site], one.before), (student.leaves[one.site], one.after)):
            with torch.no_grad():
                off = leaf(*(values[name] for name in read))[real] - wanted
            assert float(off.norm() / wanted.norm()) == pytest.approx(error, rel=1e-12)


def test_nothing_but_the_maps_changes() -> None:
    program = tagger_program()
    tensors = {name: tensor.clone() for name, tensor in program.tensors.items()}
    student = linear_student(program)
    before = state_of(student)
    transfer_attention(student, program, BATCHES[:2], steps=5)
    after = student.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"leaves.{name}.linear.map" for name in attentions(program)}
    assert all(torch.equal(program.tensors[name], tensor) for name, tensor in tensors.items())
    assert all(parameter.grad is None for parameter in student.parameters())


def test_each_layer_learns_as_if_it_were_alone() -> None:
    program = tagger_program()
    both, alone = linear_student(program), linear_student(program)
    (first, second) = attentions(program)
    transfer_attention(both, program, BATCHES, steps=12)
    transfer_attention(alone, program, BATCHES, steps=12, sites=[second])
    name = f"leaves.{second}.linear.map"
    assert torch.equal(both.state_dict()[name], alone.state_dict()[name])
    untouched = f"leaves.{first}.linear.map"
    assert torch.equal(alone.state_dict()[untouched], linear_student(program).state_dict()[untouched])


def test_what_a_query_at_padding_gives_does_not_count() -> None:
    program = tagger_program()
    moved = [dict(batch) for batch in BATCHES]
    for batch in moved:
        batch["ids"] = torch.where(batch["mask"] == 1, batch["ids"], 1)
    students = [linear_student(program), linear_student(program)]
    for student, batches in zip(students, (BATCHES, moved), strict=True):
        transfer_attention(student, program, batches, steps=8)
    for name, tensor in students[0].state_dict().items():
        # A product sums the same numbers.
        torch.testing.assert_close(students[1].state_dict()[name], tensor, atol=1e-12, rtol=0)


def test_values_that_are_not_kept_are_computed_again_to_the_same_result() -> None:
    program = tagger_program()
    kept, again = linear_student(program), linear_student(program)
    transfer_attention(kept, program, BATCHES, steps=9)
    transfer_attention(again, program, BATCHES, steps=9, kept_bytes=0)
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in kept.state_dict().items())


def test_what_does_worse_on_unseen_batches_is_taken_back() -> None:
    program = tagger_program()
    student = linear_student(program)
    before = state_of(student)
    found = transfer_attention(student, program, BATCHES, steps=20, lr=50.0)
    assert not any(one.is_kept for one in found) and not any(one.after < one.before for one in found)
    assert all(torch.equal(student.state_dict()[name], tensor) for name, tensor in before.items())


def test_what_has_no_parameters_stays_what_it_is() -> None:
    program = tagger_program()
    student = Trainable(program, mean_leaves(program), padding="mask").eval()
    found = transfer_attention(student, program, BATCHES[:2], steps=5)
    assert len(found) == 2 and all(one.before == one.after and not one.is_kept for one in found)


def test_an_attention_without_a_leaf_is_refused() -> None:
    program = tagger_program()
    (first, second), reads = tuple(attentions(program)), attentions(program)
    student = Trainable(program, {first: (reads[first], InPlaceOfSoftmax(MappedAttention(SHAPE)))})
    with pytest.raises(UserError, match=f"no leaf is in the place of the attention '{second}'"):
        transfer_attention(student, program, BATCHES, sites=[second])
