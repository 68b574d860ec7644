from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowopt.errors import InternalError
from flowopt.ir.legality import violations
from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.rewrite.edit import Claim, Edit
from tests.rewrite.passes import aten, chain
from tests.verification.substitute import captured


def edit_at(program: Program, name: str) -> Edit:
    return Edit(program, program.node(name), "test-pass:level=2")


class TestCall:
    def test_stands_before_the_anchor_with_its_value_recorded(self) -> None:
        program = chain()
        new = edit_at(program, "relu_1").call(aten.clamp.default, program.node("relu"), 0)
        names = [n.name for n in program.graph.nodes]
        assert names.index("relu") < names.index(new.name) < names.index("relu_1")
        recorded = new.meta["val"]
        assert (recorded.dtype, str(recorded.shape)) == (torch.float32, str(program.node("relu").meta["val"].shape))

    def test_inherits_the_line_and_the_module_and_says_who_made_it(self) -> None:
        program = capture(nn.Sequential(nn.Linear(3, 4), nn.ReLU()).eval(), (torch.zeros(2, 3),))
        relu = program.node("relu")
        new = edit_at(program, "relu").call(aten.clamp.default, relu.args[0], 0)
        assert new.meta["stack_trace"] == relu.meta["stack_trace"]
        assert new.meta["nn_module_stack"] == relu.meta["nn_module_stack"]
        assert new.meta["rewritten_by"] == "test-pass:level=2"

    def test_before_moves_the_place_and_comes_back(self) -> None:
        program = chain()
        edit = edit_at(program, "relu_1")
        with edit.before(program.node("linear")):
            early = edit.call(aten.neg.default, program.node("x"))
        late = edit.call(aten.neg.default, program.node("x"))
        names = [n.name for n in program.graph.nodes]
        assert names.index(early.name) < names.index("linear") < names.index(late.name) < names.index("relu_1")
        assert early.meta["stack_trace"] == program.node("linear").meta["stack_trace"]

    def test_repeat_is_the_same_call_on_other_inputs(self) -> None:
        program = chain()
        linear = program.node("linear")
        edit = edit_at(program, "linear")
        x = edit.call(aten.neg.default, program.node("x"))
        again = edit.repeat(linear, {program.node("x"): x})
        assert again.target is linear.target
        assert again.args == (x, *linear.args[1:])


class TestFreeDimensions:
    """Copies of a program share what is known of its sizes: a rewrite must not fix one for all of them."""

    @pytest.mark.parametrize(
        ("target", "args"),
        [
            (aten.constant_pad_nd.default, ([0, 0, 0, 3],)),
            (aten.pad.default, ([0, 0, 0, 3],)),
            (aten.reshape.default, ([4, 6, 8],)),
            (aten.expand.default, ([4, 6, 8],)),
            (aten.add.Tensor, (torch.ones(6, 8),)),
        ],
    )
    def test_stay_free_whatever_an_operator_asks(self, target: Any, args: tuple[Any, ...]) -> None:
        program = captured(torch.sin)
        before = [str(node.meta["val"].shape) for node in program.graph.nodes if node.op != "output"]
        copy = program.copy()
        edit = Edit(copy, copy.node("sin"), "test")
        if isinstance(args[0], torch.Tensor):
            args = (edit.parameter("ones", args[0].double(), like=copy.node("sin")),)
        edit.call(target, copy.node("linear"), *args)
        assert [str(node.meta["val"].shape) for node in program.graph.nodes if node.op != "output"] == before

    def test_a_padded_size_is_known_in_terms_of_the_free_one(self) -> None:
        program = captured(torch.sin).copy()
        edit = Edit(program, program.node("sin"), "test")
        padded = edit.call(aten.constant_pad_nd.default, program.node("linear"), [0, 0, 0, 3])
        sequence = program.node("linear").meta["val"].shape[1]
        assert str(padded.meta["val"].shape[1]) == str(sequence + 3)


class TestParameter:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
    def test_is_rounded_once_and_stays_float64_in_the_twin(self, dtype: torch.dtype) -> None:
        program = capture(nn.Linear(2, 2).to(dtype).eval(), (torch.zeros(1, 2, dtype=dtype),))
        value = torch.tensor([1 / 3, 2 / 3], dtype=torch.float64)
        for copy, wanted in ((program.copy(), value.to(dtype)), (program.raised_copy(), value)):
            weight = copy.node("linear").args[1]
            assert isinstance(weight, torch.fx.Node)
            node = edit_at(copy, "linear").parameter("weight.third", value, like=weight)
            assert torch.equal(copy.tensors["weight.third"], wanted)
            assert copy.tensors["weight.third"].dtype is wanted.dtype
            assert node.meta["val"].dtype is dtype

    def test_names_are_made_unique_and_nothing_is_overwritten(self) -> None:
        program = chain()
        stored = program.tensors["first.bias"]
        edit, like = edit_at(program, "linear"), program.node("first_bias")
        made = [edit.parameter("first.bias", torch.zeros(4).double(), like=like) for _ in range(2)]
        assert [str(n.target) for n in made] == ["first.bias_1", "first.bias_2"]
        assert program.tensors["first.bias"] is stored

    def test_does_not_share_memory_with_its_source(self) -> None:
        program = capture(nn.Linear(2, 2).double().eval(), (torch.zeros(1, 2).double(),))
        weight = program.node("linear").args[1]
        assert isinstance(weight, torch.fx.Node)
        node = edit_at(program, "linear").parameter("copy", program.tensors["weight"].t(), like=weight)
        stored = program.tensors[str(node.target)]
        assert stored.is_contiguous() and not stored.requires_grad

    def test_needs_a_recorded_dtype(self) -> None:
        program = chain()
        like = program.node("first_bias")
        del like.meta["val"]
        with pytest.raises(InternalError, match="first_bias has no recorded dtype"):
            edit_at(program, "linear").parameter("b", torch.zeros(4).double(), like=like)


class TestReplace:
    def test_every_reader_moves_and_a_claim_is_made(self) -> None:
        program = chain()
        edit = edit_at(program, "relu_1")
        edit.replace(program.node("relu_1"), program.node("relu"))
        program.drop_unused()
        assert edit.claims == [Claim("relu_1", "relu")]
        assert program.node("linear_1").args[0] is program.node("relu")
        assert list(violations(program.graph, program.tensors)) == []

    def test_an_output_may_be_replaced(self) -> None:
        program = chain()
        edit_at(program, "neg_1").replace(program.node("neg_1"), program.node("linear_1"))
        program.drop_unused()
        assert isinstance(program.run(torch.ones(2, 3)), Tensor)

    @pytest.mark.parametrize(
        ("target", "args", "message"),
        [
            (aten._to_copy.default, {"dtype": torch.float64}, "float32 .* became torch.float64"),
            (aten.unsqueeze.default, {"dim": 0}, "became torch.float32"),
            (aten.sum.dim_IntList, {"dim": [1], "keepdim": True}, r"4\] became torch.float32 .*1\]"),
        ],
    )
    def test_refuses_another_dtype_rank_or_size(self, target: object, args: dict[str, object], message: str) -> None:
        program = chain()
        edit = edit_at(program, "relu_1")
        new = edit.call(target, program.node("relu"), **args)
        with pytest.raises(InternalError, match=message):
            edit.replace(program.node("relu_1"), new)
        assert edit.claims == []

    def test_sizes_are_compared_and_are_no_claims(self) -> None:
        class Sized(nn.Module):
            def forward(self, x: Tensor, y: Tensor) -> Tensor:
                return x.sum() * x.shape[0] + y.sum() * y.shape[0]

        dynamic = {"x": {0: "a"}, "y": {0: "b"}}
        program = capture(Sized().eval(), (torch.ones(5, 3), torch.ones(7, 3)), dynamic=dynamic)
        first, second = (n for n in program.graph.nodes if n.target is aten.sym_size.int)
        edit = edit_at(program, "mul")
        same = edit.call(aten.sym_size.int, program.node("x"), 0)
        edit.replace(first, same)
        assert (edit.claims, edit.sizes) == ([], [Claim(first.name, same.name)])
        with pytest.raises(InternalError, match="became"):
            edit.replace(second, same)
