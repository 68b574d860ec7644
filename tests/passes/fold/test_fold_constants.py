from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from flowopt.ir.text import operator_census
from flowopt.passes.fold.fold_constants import FoldConstants
from flowopt.pipeline.runner import run_passes
from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.testing import assert_refuses, assert_rewrites
from flowopt.verification.verify_passes import VerifyPasses
from tests.passes.fold.parametrized import BY_CONSTANTS, SigmaReparamLinear, StandardizedConv2d
from tests.passes.programs import Written, normal, randomised


def program_of(forward: Callable[..., Any], *inputs: Tensor, **parts: nn.Module | Tensor) -> Program:
    return capture(randomised(Written(forward, **parts)), inputs)


def stored(*shape: int) -> nn.Parameter:
    return nn.Parameter(normal(*shape, seed=3))


def test_an_expression_becomes_one_tensor() -> None:
    program = program_of(lambda m, x: x * (m.gain.exp() + 1.0).sqrt(), normal(3, 4), gain=stored(4))
    run = assert_rewrites(
        FoldConstants(),
        program,
        before={"aten.exp": 1, "aten.add.Tensor": 1, "aten.sqrt": 1},
        after={"aten.exp": 0, "aten.add.Tensor": 0, "aten.sqrt": 0, "aten.mul.Tensor": 1},
        max_ulp=0,
    )
    assert run.records[0].applied[0].summary == "3 operators -> one stored tensor"
    assert "gain" not in run.program.tensors


def test_the_value_is_that_of_the_models_own_arithmetic() -> None:
    """In float16, where float64 arithmetic that is rounded at the end gives other numbers."""
    gain = normal(512, seed=3).half()
    program = program_of(lambda m, x: x * (m.gain * 1.7 + 0.3).tanh(), normal(3, 512).half(), gain=nn.Parameter(gain))
    folded = run_passes(program, [FoldConstants()]).program
    (name,) = folded.tensors
    given = program.tensors["gain"]
    wanted = (given * 1.7 + 0.3).tanh()
    assert torch.equal(folded.tensors[name], wanted)
    assert not torch.equal(wanted, (given.double() * 1.7 + 0.3).tanh().half())


def test_a_mask_of_integers_and_booleans() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        seen = torch.arange(5).unsqueeze(1) >= torch.arange(5)
        return x.masked_fill(~seen, -9.0)

    program = program_of(forward, normal(2, 5, 5))
    run = assert_rewrites(
        FoldConstants(), program, before={"aten.arange": 2, "aten.bitwise_not": 1}, after={"aten.arange": 0}, max_ulp=0
    )
    (mask,) = run.program.tensors.values()
    assert mask.dtype is torch.bool and mask.shape == (5, 5)


def test_a_view_gets_memory_of_its_own() -> None:
    program = program_of(lambda m, x: x @ m.w.t()[:, 1:3], normal(3, 6), w=stored(4, 6))
    run = assert_rewrites(FoldConstants(), program, before={"aten.t": 1}, after={"aten.t": 0}, max_ulp=0)
    (folded,) = run.program.tensors.values()
    assert folded.untyped_storage().nbytes() == folded.numel() * 4


def test_what_is_read_elsewhere_stays_stored_too() -> None:
    program = program_of(lambda m, x: (x * m.gain.exp()) + m.gain, normal(3, 4), gain=stored(4))
    run = assert_rewrites(FoldConstants(), program, before={"aten.exp": 1}, after={"aten.exp": 0}, max_ulp=0)
    assert run.program.tensors["gain"] is program.tensors["gain"]
    assert len(run.program.tensors) == 2


def test_both_results_of_one_operator() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        gain, shift = m.both.exp().chunk(2)
        return x * gain + shift

    program = program_of(forward, normal(3, 4), both=stored(8))
    run = run_passes(program, [FoldConstants()], [VerifyPasses()])
    assert run.records[0].outcome == "kept"
    assert operator_census(run.program.graph) == {"aten.mul.Tensor": 1, "aten.add.Tensor": 1}


def folded(module: nn.Module, x: Tensor) -> list[Tensor]:
    """The tensors that are stored after the pass."""
    return list(run_passes(capture(module, (x,)), [FoldConstants()]).program.tensors.values())


class TestParametrizations:
    """They are constant expressions, with nothing of their own to know."""

    @pytest.mark.parametrize("kind", BY_CONSTANTS)
    def test_only_the_layer_is_left(self, kind: str) -> None:
        made = BY_CONSTANTS[kind]()
        program = capture(made.module, (made.x,))
        run = run_passes(program, [FoldConstants()])
        plain = operator_census(capture(made.plain, (made.x,)).graph)
        assert operator_census(run.program.graph) == plain != operator_census(program.graph)
        # BITWISE, so the values are those of the module itself.
        with torch.no_grad():
            torch.testing.assert_close(run.program.run(made.x), made.module(made.x), rtol=1e-12, atol=1e-12)
        assert len(run.program.tensors) == len(made.plain.state_dict()), "what the weight was computed from is kept"

    def test_sigma_is_that_of_one_power_step_from_the_stored_start(self) -> None:
        """The singular value itself, to which more steps converge, and that of the last training step are others."""
        layer = randomised(SigmaReparamLinear(6, 5)).double()
        (weight,) = (t for t in folded(layer, normal(2, 6).double()) if t.dim() == 2)
        assert torch.equal(weight, layer.scaled())
        converged = layer.gain * layer.weight / torch.linalg.matrix_norm(layer.weight, 2)
        assert (weight - converged).abs().max() > 1e-3

    def test_an_epsilon_stays_where_the_module_adds_it(self) -> None:
        """For weights of scale 1e-3 the two places give weights that differ by two thirds."""
        weights = {}
        for inside in (True, False):
            layer = randomised(StandardizedConv2d(3, 4, 3, inside=inside)).double()
            layer.weight.data.mul_(1e-3)
            (weights[inside],) = (t for t in folded(layer, normal(1, 3, 5, 5).double()) if t.dim() == 4)
            assert torch.equal(weights[inside], layer.standardized())
        assert weights[True].norm() < 0.5 * weights[False].norm()

    def test_biased_weight_standardization(self) -> None:
        def forward(m: Written, x: Tensor) -> Tensor:
            w = m.conv.weight
            mean = w.mean((1, 2, 3), keepdim=True)
            w = (w - mean) / (w.var((1, 2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()
            return functional.conv2d(x, w, m.conv.bias)

        program = program_of(forward, normal(2, 3, 5, 5), conv=nn.Conv2d(3, 4, 3))
        run = run_passes(program, [FoldConstants()], [VerifyPasses()])
        assert run.records[0].outcome == "kept", run.records[0].reason
        assert operator_census(run.program.graph) == {"aten.conv2d": 1}


class TestRefusals:
    def test_an_output_stays(self) -> None:
        program = program_of(lambda m, x: [x * 2, m.gain.exp()], normal(3, 4), gain=stored(4))
        assert_refuses(FoldConstants(), program, code="graph-output")

    def test_a_table_that_was_a_rule_stays_a_rule(self) -> None:
        program = program_of(lambda m, x: x + m.row.expand(700, 600), normal(700, 600), row=stored(1, 600))
        run = assert_refuses(FoldConstants(), program, code="grows-too-much")
        assert "1,680,000 bytes would take the place of 2,400" in run.records[0].refused[0].message
        fired = run_passes(program, [FoldConstants(max_growth=1 << 21)], [VerifyPasses()])
        assert fired.records[0].outcome == "kept"

    def test_a_transposed_copy_of_a_tied_weight_is_not_stored(self) -> None:
        table = stored(900, 400)
        program = program_of(
            lambda m, ids: functional.embedding(ids, m.table) @ m.table.t(), torch.arange(3), table=table
        )
        assert_refuses(FoldConstants(), program, code="grows-too-much")

    def test_alone_it_takes_the_place_of_the_weight(self) -> None:
        program = program_of(lambda m, x: x @ m.table.t(), normal(3, 400), table=stored(900, 400))
        run = assert_rewrites(FoldConstants(), program, before={"aten.t": 1}, after={"aten.t": 0}, max_ulp=0)
        assert run.records[0].added_bytes == 0
        # The kernel is that of a transposed matrix still: a copy in another order would add in another order.
        (folded,) = run.program.tensors.values()
        assert folded.stride() == (1, 400)

    def test_random_numbers_and_state_are_no_constants(self) -> None:
        class Counting(nn.Module):
            count: Tensor

            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("count", torch.zeros(4))

            def forward(self, x: Tensor) -> Tensor:
                self.count.add_(1.0)
                return x * self.count.exp()

        program = capture(Counting().eval(), (normal(3, 4),))
        assert not run_passes(program, [FoldConstants()]).records[0].anchors
        drawing = program_of(lambda m, x: x + torch.rand(4), normal(3, 4))
        assert not run_passes(drawing, [FoldConstants()]).records[0].anchors
