"""Questions of the example of nested list operations, and its network."""

import torch
from torch import Tensor

from examples import listops


def worked_out(tokens: list[int]) -> int:
    """What a question comes to, bracket by bracket."""
    names, stack = listops.OPERATIONS, list[tuple[str, list[int]]]()
    for token in tokens:
        if 1 <= token <= len(names):
            stack.append((names[token - 1], []))
        elif token >= listops.FIRST_DIGIT:
            stack[-1][1].append(token - listops.FIRST_DIGIT)
        else:
            name, numbers = stack.pop()
            numbers.sort()
            result = {
                "MAX": max(numbers),
                "MIN": min(numbers),
                "MED": numbers[(len(numbers) - 1) // 2],
                "SM": sum(numbers) % 10,
            }[name]
            if not stack:
                return result
            stack[-1][1].append(result)
    raise ValueError("a bracket is open")


def test_labels_are_the_answers() -> None:
    questions = listops.generate(200, seed=3)
    found = [worked_out([t for t in row if t != listops.PAD]) for row in questions.tokens.tolist()]
    assert found == questions.labels.tolist()
    assert len(set(found)) == listops.CLASSES


def test_equal_seeds_give_equal_questions_and_others_do_not() -> None:
    one, same, other = (listops.generate(20, seed).tokens for seed in (4, 4, 5))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_batches_are_all_questions_once_cut_to_their_length() -> None:
    torch.manual_seed(6)
    questions = listops.generate(150, seed=6)
    parts = list(listops.batches(questions, 64))
    assert [len(part.tokens) for part in parts].count(64) == 2
    assert all((part.tokens != listops.PAD).any(0)[-1] for part in parts)

    def as_rows(tokens: Tensor) -> list[list[int]]:
        return [[t for t in row if t != listops.PAD] for row in tokens.tolist()]

    assert sorted(sum((as_rows(part.tokens) for part in parts), [])) == sorted(as_rows(questions.tokens))


@torch.no_grad()
def test_padding_does_not_change_the_answer() -> None:
    torch.manual_seed(7)
    model = listops.ListOps().eval()
    tokens = listops.generate(8, seed=7).tokens
    shortest = tokens[(tokens != listops.PAD).sum(1).argmin()][None]
    length = int((shortest != listops.PAD).sum())
    torch.testing.assert_close(model(shortest), model(shortest[:, :length]), rtol=0, atol=1e-5)  # float32
