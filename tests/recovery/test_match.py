"""What is local to a swapped norm is trained towards the teacher's values, and nothing else."""

import pytest
import torch
from torch import Tensor, nn

import flowopt
from flowopt.errors import UserError
from flowopt.program.program import Program
from flowopt.recovery.match import match_layers
from flowopt.recovery.observed import no_grad_walk, teacher_values
from flowopt.recovery.trainable import Trainable
from tests.recovery.affine_leaf import AffineLeaf
from tests.recovery.swapped import batches, distance, swapped_student
from tests.recovery.tiny_transformer import norms_of, tiny_program
from tests.zoo.randomise import randomise

NORMS = list(norms_of(tiny_program()))


class PostNorm(nn.Module):
    """Two layers read the norm, one of them without a bias, and a residual addition does."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.up, self.gate = nn.Linear(6, 8), nn.Linear(6, 8, bias=False)
        self.down = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return y + self.down(torch.relu(self.up(y)) * self.gate(y.reshape(-1, 6)).reshape(x.shape[0], 3, 8))


def post_norm() -> tuple[Program, Trainable, list[dict[str, Tensor]]]:
    module = PostNorm().double()
    randomise(module, 1)
    program = flowopt.capture(module.eval(), (torch.zeros(4, 3, 6).double(),), dynamic={"x": {0: "batch"}})
    ((name, source),) = norms_of(program).items()
    leaf = AffineLeaf(module.norm.weight.detach(), module.norm.bias.detach())
    generator = torch.Generator().manual_seed(2)
    given = [{"x": torch.randn(8, 3, 6, generator=generator, dtype=torch.float64)} for _ in range(8)]
    return program, Trainable(program, {name: (source, leaf)}), given


def test_matching_brings_the_student_nearer_to_the_teacher() -> None:
    student = swapped_student()
    before = distance(student)
    found = match_layers(student, tiny_program(), batches(), steps=60, lr=3e-3)
    assert [one.norm for one in found] == NORMS and all(one.is_kept for one in found[:-1])
    assert distance(student) < 0.9 * before


def test_only_what_is_local_changes() -> None:
    student = swapped_student()
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    match_layers(student, tiny_program(), batches(4), steps=20, lr=1e-3, norms=[NORMS[1]])
    changed = {name for name, tensor in student.state_dict().items() if not torch.equal(tensor, before[name])}
    tensors = {f"tensors./blocks/0/up/{part}" for part in ("weight", "bias")}
    assert changed == tensors | {f"leaves.{NORMS[1]}.{part}" for part in ("weight", "bias")}
    assert all(parameter.grad is None for parameter in student.parameters())


def test_the_error_is_that_of_the_whole_student() -> None:
    program, student, given = post_norm()
    (found,) = match_layers(student, program, given[:4], steps=20, lr=1e-2, held_out=given[4:])
    assert found.is_kept
    student.eval()
    wanted = [teacher_values(program, batch, found.values) for batch in given[4:]]
    computed = [no_grad_walk(student, batch, found.values) for batch in given[4:]]
    shares = []
    for name in found.values:
        y = torch.cat([w[name].flatten(0, -2) for w in wanted])
        s = torch.cat([c[name].flatten(0, -2) for c in computed])
        shares.append(float((s - y).square().sum() / (y - y.mean(0)).square().sum()))
    assert found.after == pytest.approx((sum(shares) / len(shares)) ** 0.5, rel=1e-9)


def test_the_norm_itself_is_matched_where_a_residual_reads_it() -> None:
    program, student, given = post_norm()
    (found,) = match_layers(student, program, given, steps=1)
    (norm,) = norms_of(program)
    assert found.values[0] == norm and len(found.values) == 3


def test_before_a_tied_layer_the_norm_itself_is_matched() -> None:
    found = match_layers(swapped_student(), tiny_program(), batches(4), steps=1, norms=[NORMS[-1]])
    assert found[0].values == (NORMS[-1],)


def test_a_seed_repeats_a_matching() -> None:
    states = []
    for seed in (1, 1, 2):
        student = swapped_student((NORMS[0],))
        match_layers(student, tiny_program(), batches(8), steps=10, lr=1e-3, seed=seed)
        states.append(student.state_dict()["tensors./blocks/0/qkv/weight"])
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


def test_a_matching_that_fails_on_other_data_is_not_kept() -> None:
    student = swapped_student()
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    found = match_layers(student, tiny_program(), batches(4), steps=3, lr=50.0)
    assert not any(one.is_kept for one in found)
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())


def test_padding_is_not_matched() -> None:
    states = []
    for filler in (0, 7):
        student = swapped_student((NORMS[0],))
        given = [{**b, "ids": b["ids"].where(b["mask"] == 1, torch.tensor(filler))} for b in batches(4)]
        match_layers(student, tiny_program(), given, steps=5, lr=1e-3)
        states.append(student.state_dict())
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, atol=1e-9, rtol=0)  # sums in another order, over Adam


def test_modes_and_statistics_stay() -> None:
    student = swapped_student().train()
    before = {name: buffer.clone() for name, buffer in student.named_buffers()}
    match_layers(student, tiny_program(), batches(4), steps=2)
    assert student.training and all(leaf.training for leaf in student.leaves.values())
    assert all(torch.equal(buffer, before[name]) for name, buffer in student.named_buffers())


def test_a_norm_without_a_leaf_is_refused() -> None:
    with pytest.raises(UserError, match="no leaf is in the place of"):
        match_layers(swapped_student((NORMS[0],)), tiny_program(), batches(4), norms=[NORMS[1]])
