"""Queries at padding are found by attention's own layout, and do not count as features."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import flowopt
from flowopt.program.program import Program
from flowopt.recovery.objective import Objective
from flowopt.recovery.padded_queries import padded_queries
from flowopt.recovery.settings import RecoverySettings
from tests.recovery.tiny_attention import attentions, linear_student, tagger_program, texts

MASKED = torch.tensor([[False, False, True], [False, False, False]])


class Attended(nn.Module):
    """As many heads as tokens."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        split = x.unflatten(-1, (3, -1)).transpose(1, 2)
        return functional.scaled_dot_product_attention(split, split, split, attn_mask=mask[:, None, None, :].bool())


class Crossed(nn.Module):
    """Two queries of three tokens."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        split = x.unflatten(-1, (3, -1)).transpose(1, 2)
        seen = mask[:, None, None, :].bool()
        return functional.scaled_dot_product_attention(split[:, :, :2], split, split, attn_mask=seen)


def program_of(module: nn.Module) -> Program:
    return flowopt.capture(module.eval(), (), {"x": torch.ones(2, 3, 6), "mask": (~MASKED).long()})


def test_as_many_heads_as_tokens_are_not_mistaken() -> None:
    program = program_of(Attended())
    (name,) = attentions(program)
    found = padded_queries(program, name, torch.ones(2, 3, 3, 2), "mask", MASKED)
    assert found is not None and torch.equal(found, MASKED[:, None, :].expand(2, 3, 3))


def test_queries_of_another_sequence_are_not_told_by_the_mask() -> None:
    program = program_of(Crossed())
    (name,) = attentions(program)
    assert padded_queries(program, name, torch.ones(2, 3, 2, 2), "mask", MASKED) is None
    assert padded_queries(program, name, torch.ones(2, 3, 2, 2), None, None) is None


def test_attention_at_padding_is_no_feature() -> None:
    program = tagger_program()
    features = tuple(attentions(program))
    objective = Objective(linear_student(program), program, RecoverySettings(features=features, feature_weight=1.0))
    given = texts(4, seed=3)
    moved = given | {"ids": torch.where(given["mask"] == 1, given["ids"], 1)}
    with torch.no_grad():
        losses = [float(objective(batch, {})) for batch in (given, moved)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12) and not torch.equal(given["ids"], moved["ids"])
