"""A program with autograd: gradients, leaves in the place of norms, padding, and the way back to a program."""

import pytest
import torch
from torch import Tensor, nn

from flowopt.errors import UserError
from flowopt.ops.attention import InPlaceOfSoftmax, MeanAttention
from flowopt.recovery.trainable import Trainable
from tests.recovery.affine_leaf import AffineLeaf
from tests.recovery.tiny_attention import SHAPE, attentions, mean_leaves, tagger_program, texts
from tests.recovery.tiny_transformer import TOKENS, inputs, norms_of, program_of, tiny_program, tiny_transformer


def only(outputs: dict[str, Tensor]) -> Tensor:
    (value,) = outputs.values()
    return value


def leaf_of(name: str) -> AffineLeaf:
    return AffineLeaf(torch.full((12,), 0.5).double(), torch.full((12,), 0.1).double(), seed=len(name))


def test_gradients_are_those_of_the_module() -> None:
    module = tiny_transformer()
    student = Trainable(program_of(module), padding="mask")
    given = inputs(4, seed=1)
    weights = torch.randn(4, TOKENS, 19, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    (only(student(given)[0]) * weights).sum().backward()
    (module(**given) * weights).sum().backward()
    trained = {key: p.grad for key, p in student.tensors.named_parameters()}
    expected = {"/" + name.replace(".", "/"): p.grad for name, p in module.named_parameters()}
    assert trained.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(trained[name], gradient, atol=1e-10, rtol=1e-10)  # the same operators in float64


def test_training_leaves_the_tensors_of_the_program_and_the_module_alone() -> None:
    module = tiny_transformer()
    program = program_of(module)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    student = Trainable(program)
    only(student(inputs(4, seed=1))[0]).sum().backward()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert all(torch.equal(program.tensors[name], before[name]) for name in program.tensors)
    assert all(parameter.grad is None for parameter in module.parameters())


def test_the_trained_program_computes_what_the_student_does() -> None:
    student = Trainable(tiny_program(), padding="mask")
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(1.25)
    given = inputs(4, seed=1)
    trained = student.trained_program()
    assert torch.equal(only(student(given)[0]), only(trained.run_named(given)))
    assert not torch.equal(student.program.tensors["embedding.weight"], trained.tensors["embedding.weight"])


def test_a_tied_table_is_one_parameter_with_the_gradients_of_both_readers() -> None:
    student = Trainable(tiny_program())
    tables = [p for p in student.parameters() if p.shape == (19, 12)]
    assert len(tables) == 1


def test_names_that_share_a_tensor_share_the_parameter_and_stay_shared() -> None:
    program = tiny_program()
    head = next(n for n in reversed(program.graph.nodes) if n.target is torch.ops.aten.linear.default)
    program.tensors["head.weight"] = program.tensors["embedding.weight"]
    with program.graph.inserting_before(head):
        again = program.graph.create_node("get_attr", "head.weight")
    again.meta = dict(head.args[1].meta)
    head.update_arg(1, again)
    student = Trainable(program)
    assert len([p for p in student.parameters() if p.shape == (19, 12)]) == 1
    trained = student.trained_program()
    assert trained.tensors["head.weight"] is trained.tensors["embedding.weight"]


def test_sixteen_bit_weights_are_trained_in_float32_and_stored_in_sixteen() -> None:
    program = program_of(tiny_transformer(torch.bfloat16))
    student = Trainable(program)
    assert {p.dtype for p in student.parameters()} == {torch.float32}
    given = inputs(4, seed=1)
    assert torch.equal(only(student(given)[0]), only(program.run_named(given)))
    trained = student.trained_program()
    assert {t.dtype for t in trained.tensors.values()} == {t.dtype for t in program.tensors.values()}


def test_frozen_tensors_and_constants_are_no_parameters() -> None:
    student = Trainable(tiny_program(), frozen=["embedding.weight"])
    names = {name for name, _ in student.tensors.named_parameters()}
    assert "/embedding/weight" not in names and "/positions" in names
    assert not {name for name in names if name.endswith(("/cos", "/sin", "/causal"))}


def test_a_leaf_takes_the_place_of_a_norm_whose_gain_is_no_longer_trained() -> None:
    program = tiny_program()
    name, source = next(iter(norms_of(program).items()))
    leaf = leaf_of(name)
    student = Trainable(program, {name: (source, leaf)}, padding="mask").eval()
    _, seen = student(inputs(4, seed=1), observe=[name, source])
    assert torch.equal(seen[name], leaf(seen[source], None))
    names = {key for key, _ in student.tensors.named_parameters()}
    assert "/blocks/0/before_attention/weight" not in names and "/blocks/0/before_mlp/weight" in names


def test_a_leaf_that_is_not_active_leaves_the_norm_in_place() -> None:
    program = tiny_program()
    leaves = {name: (source, leaf_of(name)) for name, source in norms_of(program).items()}
    student = Trainable(program, leaves, padding="mask").eval()
    given = inputs(4, seed=1)
    swapped = only(student(given)[0])
    student.active = frozenset()
    assert torch.equal(only(student(given)[0]), only(program.run_named(given)))
    student.active = frozenset(leaves)
    assert torch.equal(only(student(given)[0]), swapped)
    assert not torch.equal(swapped, only(program.run_named(given)))


def test_gradients_through_a_leaf_are_those_of_finite_differences() -> None:
    program = tiny_program()
    leaves = {name: (source, leaf_of(name)) for name, source in norms_of(program).items()}
    student = Trainable(program, leaves).eval()
    given = inputs(3, seed=1)
    gain = student.get_parameter("leaves.layer_norm_1.weight")
    (slope,) = torch.autograd.grad(only(student(given)[0]).square().mean(), gain)
    step = 1e-5
    with torch.no_grad():
        gain[2] += step
        above = only(student(given)[0]).square().mean()
        gain[2] -= 2 * step
        below = only(student(given)[0]).square().mean()
    assert float(slope[2]) == pytest.approx(
        float(above - below) / (2 * step), rel=1e-6
    )  # error of a central difference


def test_a_leaf_is_told_which_tokens_are_padding() -> None:
    program = tiny_program()
    name, source = next(iter(norms_of(program).items()))
    leaf = leaf_of(name)
    given = inputs(4, seed=1)
    Trainable(program, {name: (source, leaf)}, padding="mask")(given)
    assert leaf.last_mask is not None and torch.equal(leaf.last_mask, given["mask"] == 0)
    Trainable(program, {name: (source, leaf)})(given)
    assert leaf.last_mask is None


def test_a_leaf_inside_of_attention_is_told_where_its_tokens_are() -> None:
    program = tiny_program()
    # Queries with rotary positions: [batch, heads, tokens, features of a head].
    rotated = next(n for n in program.graph.nodes if n.target is torch.ops.aten.add.Tensor and n.meta["val"].dim() == 4)
    leaf = AffineLeaf(torch.ones(4).double(), torch.zeros(4).double())
    given = inputs(3, seed=1)
    Trainable(program, {rotated.name: (str(rotated.args[0]), leaf)}, padding="mask")(given)
    assert leaf.last_mask is not None
    assert torch.equal(leaf.last_mask, (given["mask"] == 0)[:, None, :].expand(3, 3, TOKENS))


def test_the_state_of_a_student_can_be_put_into_another() -> None:
    program = tiny_program()
    name, source = next(iter(norms_of(program).items()))
    first = Trainable(program, {name: (source, leaf_of(name))})
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.mul_(0.75)
    second = Trainable(program, {name: (source, leaf_of(name))})
    second.load_state_dict(first.state_dict())
    assert second.leaves[name].running is not first.leaves[name].running
    given = inputs(4, seed=1)
    assert torch.equal(only(second.eval()(given)[0]), only(first.eval()(given)[0]))


def test_names_that_the_program_does_not_have_are_refused() -> None:
    program = tiny_program()
    (name, source), *_ = norms_of(program).items()
    leaf = leaf_of(name)
    with pytest.raises(UserError, match="no node 'nowhere'"):
        Trainable(program, {name: ("nowhere", leaf)})
    with pytest.raises(UserError, match="computed after"):
        Trainable(program, {source: (name, leaf)})
    with pytest.raises(UserError, match="no input 'pad'"):
        Trainable(program, padding="pad")
    with pytest.raises(UserError, match="no stored tensor 'head'"):
        Trainable(program, frozen=["head"])
    with pytest.raises(UserError, match="no node 'nothing' to observe"):
        Trainable(program)(inputs(4, seed=1), observe=["nothing"])
    with pytest.raises(UserError, match="no value for the input 'mask'"):
        Trainable(program)({"ids": inputs(4, seed=1)["ids"]})


def test_a_leaf_of_several_values_gets_them_and_nothing_else() -> None:
    program = tagger_program()
    (name, read), *_ = attentions(program).items()
    leaf = InPlaceOfSoftmax(MeanAttention(SHAPE))
    student = Trainable(program, {name: (read, leaf)}, padding="mask").eval()
    _, seen = student(texts(4, seed=1), observe=[name, *read])
    assert len(read) == 4 and student.sources(name) == read
    assert torch.equal(seen[name], leaf(*(seen[one] for one in read)))


def test_leaves_of_norms_and_of_attention_stand_side_by_side() -> None:
    program = tagger_program()
    (norm, source), *_ = norms_of(program).items()
    student = Trainable(program, {**mean_leaves(program), norm: (source, leaf_of(norm))}, padding="mask").eval()
    assert student.norms == {norm} and len(student.active) == 3
    student.active = frozenset(attentions(program))
    given = texts(4, seed=1)
    assert not student.norms and not torch.equal(only(student(given)[0]), only(program.run_named(given)))


def test_what_only_attention_reads_is_computed_no_more() -> None:
    program = tagger_program()
    (name, (_, _, value, _)), *_ = attentions(program).items()

    class Same(nn.Module):
        def forward(self, value: Tensor) -> Tensor:
            return value

    student = Trainable(program, {name: ((value,), Same())})
    names = {key for key, _ in student.tensors.named_parameters()}
    assert "/blocks/0/q/weight" not in names and "/blocks/0/v/weight" in names
    seen = student(texts(4, seed=1), observe=[name, value])[1]
    assert torch.equal(seen[name], seen[value])


def test_every_value_that_a_leaf_reads_has_to_be_there_before_it() -> None:
    program = tagger_program()
    (name, read), (later, _) = attentions(program).items()
    leaf = InPlaceOfSoftmax(MeanAttention(SHAPE))
    with pytest.raises(UserError, match="no node 'nowhere'"):
        Trainable(program, {name: ((*read[:2], "nowhere"), leaf)})
    with pytest.raises(UserError, match=f"'{later}' is computed after '{name}'"):
        Trainable(program, {name: ((*read[:2], later), leaf)})
