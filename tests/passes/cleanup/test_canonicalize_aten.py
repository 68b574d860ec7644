from collections.abc import Callable
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from flowopt.passes.cleanup.canonicalize_aten import CanonicalizeAten
from flowopt.pipeline.runner import run_passes
from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.testing import assert_refuses, assert_rewrites
from tests.passes.programs import Written, decomposed, normal, randomised, together, undecomposed

CONVOLUTIONS: tuple[Any, ...] = (None, nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED: tuple[Any, ...] = (None, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
TO_LINEAR = {"aten.linear": 1, "aten.matmul": 0, "aten.mm": 0, "aten.addmm": 0, "aten.bmm": 0}


def stored(*shape: int) -> nn.Parameter:
    return nn.Parameter(normal(*shape, seed=3))


def program_of(forward: Callable[..., Any], *inputs: Tensor, **parts: nn.Module | Tensor) -> Program:
    return capture(Written(forward, **parts).eval(), inputs)


# Products with a stored matrix.


def test_addmm_with_a_stored_bias_becomes_linear() -> None:
    # transformers' Conv1D: the weight is stored (in, out).
    program = program_of(lambda m, x: torch.addmm(m.b, x, m.w), normal(3, 4), b=stored(5), w=stored(4, 5))
    assert_rewrites(CanonicalizeAten(), program, before={"aten.addmm": 1}, after=TO_LINEAR)


def test_mm_becomes_linear() -> None:
    program = program_of(lambda m, x: torch.mm(x, m.w), normal(3, 4), w=stored(4, 5))
    assert_rewrites(CanonicalizeAten(), program, before={"aten.mm": 1}, after=TO_LINEAR)


def test_matmul_of_a_sequence_becomes_linear() -> None:
    program = program_of(lambda m, x: x @ m.w, normal(2, 3, 4), w=stored(4, 5))
    assert_rewrites(CanonicalizeAten(), program, before={"aten.matmul": 1}, after=TO_LINEAR)


def test_a_computed_matrix_becomes_linear() -> None:
    program = program_of(lambda m, x: x @ (2.0 * m.w + m.v), normal(3, 4), w=stored(4, 5), v=stored(5))
    assert_rewrites(CanonicalizeAten(), program, before={"aten.matmul": 1}, after=TO_LINEAR)


def test_a_weight_that_is_transposed_anyway_is_not_copied() -> None:
    def forward(m: Written, x: Tensor) -> list[Tensor]:
        return [x @ m.w.t(), x @ m.w.T, x @ m.w.mT, x @ m.w.transpose(-1, 0), x @ m.w.permute(1, 0)]

    program = program_of(forward, normal(3, 4), w=stored(5, 4))
    run = assert_rewrites(CanonicalizeAten(), program, before={"aten.matmul": 5}, after={"aten.linear": 5})
    assert run.records[0].added_bytes == 0
    assert run.program.tensors["w"] is program.tensors["w"]


def test_a_permutation_that_moves_nothing_is_no_transpose() -> None:
    # Square, so that reading the weight untransposed would not even fail.
    program = program_of(lambda m, x: [x @ m.w.permute(0, 1), x @ m.w.transpose(1, 1)], normal(3, 4), w=stored(4, 4))
    assert_rewrites(CanonicalizeAten(), program, before={"aten.matmul": 2}, after={"aten.linear": 2})


def test_bmm_with_a_repeated_matrix_becomes_linear() -> None:
    program = program_of(lambda m, x: torch.bmm(x, m.w.expand(2, 4, 5)), normal(2, 3, 4), w=stored(4, 5))
    assert_rewrites(CanonicalizeAten(), program, before={"aten.bmm": 1}, after=TO_LINEAR)


def test_linear_over_a_transposed_input_becomes_linear_again() -> None:
    # Its default decomposition is bmm over an expanded weight, plus a separate addition.
    module = randomised(Written(lambda m, x: m.fc(x.transpose(0, 1)), fc=nn.Linear(4, 5)))
    program = decomposed(module, normal(2, 3, 4))
    assert_rewrites(CanonicalizeAten(), program, before={"aten.bmm": 1}, after=TO_LINEAR)


def test_refuses_bmm_when_a_vector_is_repeated_into_the_matrix() -> None:
    def forward(m: Written, x: Tensor) -> list[Tensor]:
        column = m.row.reshape(4, 1)
        # In the last stack every matrix has the column's shape, but repeats one element of it.
        stacks = [m.row.expand(4, 4, 4), column.expand(4, 4, 4), column.expand(4, 4).reshape(4, 4, 1)]
        return [torch.bmm(x, stack) for stack in stacks]

    assert_refuses(
        CanonicalizeAten(), program_of(forward, normal(4, 3, 4), row=stored(1, 4)), code="unsupported-spelling"
    )


def test_refuses_a_stack_of_matrices() -> None:
    program = program_of(lambda m, x: x @ m.w, normal(2, 3, 4), w=stored(2, 4, 5))
    assert_refuses(CanonicalizeAten(), program, code="unsupported-spelling")


def test_refuses_a_vector_times_a_matrix() -> None:
    program = program_of(lambda m, x: x @ m.w, normal(4), w=stored(4, 5))
    assert_refuses(CanonicalizeAten(), program, code="unsupported-spelling")


def test_refuses_scaled_addmm() -> None:
    def forward(m: Written, x: Tensor) -> list[Tensor]:
        return [torch.addmm(m.b, x, m.w, alpha=2), torch.addmm(m.b, x, m.w, beta=2)]

    program = program_of(forward, normal(3, 4), b=stored(5), w=stored(4, 5))
    assert_refuses(CanonicalizeAten(), program, code="unsupported-spelling")


def test_refuses_addmm_when_the_addend_is_a_matrix() -> None:
    program = program_of(lambda m, x: torch.addmm(m.b, x, m.w), normal(3, 4), b=stored(3, 5), w=stored(4, 5))
    assert_refuses(CanonicalizeAten(), program, code="unsupported-spelling")


def test_refuses_products_of_two_inputs() -> None:
    program = program_of(lambda _, x, y: x @ y, normal(2, 3, 4), normal(2, 4, 3))
    assert_refuses(CanonicalizeAten(), program, code="not-constant")


def test_refuses_addmm_when_the_addend_is_an_input() -> None:
    program = program_of(lambda m, x, y: torch.addmm(y, x, m.w), normal(3, 4), normal(3, 5), w=stored(4, 5))
    assert_refuses(CanonicalizeAten(), program, code="not-constant")


def test_refuses_a_matrix_that_the_model_changes() -> None:
    def grow(m: Written, x: Tensor) -> Tensor:
        m.w.add_(1.0)
        return x @ m.w

    program = program_of(grow, normal(3, 4), w=normal(4, 5))
    assert_refuses(CanonicalizeAten(), program, code="not-constant")


def test_refuses_a_matrix_without_recorded_shape() -> None:
    program = program_of(lambda m, x: x @ m.w.split([4, 1], dim=1)[0], normal(3, 4), w=stored(4, 5))
    del program.node("getitem").meta["val"]
    assert_refuses(CanonicalizeAten(), program, code="missing-metadata")


# Norms.


def test_native_layer_norm_becomes_layer_norm() -> None:
    module = randomised(nn.Sequential(nn.LayerNorm(4, eps=0.1)))
    program = decomposed(module, normal(3, 4))
    assert_rewrites(
        CanonicalizeAten(),
        program,
        before={"aten.native_layer_norm": 1},
        after={"aten.native_layer_norm": 0, "aten.layer_norm": 1},
    )


def test_refuses_when_the_statistics_of_a_layer_norm_are_read() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        y, mean, _ = torch.native_layer_norm(x, [4], m.w, None, 1e-5)
        return y + mean

    assert_refuses(CanonicalizeAten(), program_of(forward, normal(3, 4), w=stored(4)), code="multiple-readers")


def test_eval_batch_norm_gets_its_decomposed_spelling() -> None:
    program = undecomposed(randomised(nn.Sequential(nn.BatchNorm1d(4, eps=0.1))), normal(3, 4, 2))
    assert_rewrites(
        CanonicalizeAten(),
        program,
        before={"aten.batch_norm": 1},
        after={"aten.batch_norm": 0, "aten._native_batch_norm_legit_no_training": 1},
    )


def test_native_batch_norm_in_eval_mode_gets_its_decomposed_spelling() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        n = m.norm
        return torch.native_batch_norm(x, n.weight, n.bias, n.running_mean, n.running_var, False, 0.1, n.eps)[0]

    program = undecomposed(randomised(Written(forward, norm=nn.BatchNorm1d(4))), normal(3, 4, 2))
    assert_rewrites(
        CanonicalizeAten(),
        program,
        before={"aten.native_batch_norm": 1},
        after={"aten.native_batch_norm": 0, "aten._native_batch_norm_legit_no_training": 1},
    )


def test_refuses_a_batch_norm_in_train_mode() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        return F.batch_norm(x, m.norm.running_mean, m.norm.running_var, training=True)

    program = undecomposed(Written(forward, norm=nn.BatchNorm1d(4)).eval(), normal(3, 4))
    assert_refuses(CanonicalizeAten(), program, code="train-mode")


def test_refuses_a_batch_norm_without_running_statistics() -> None:
    program = undecomposed(nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False)).eval(), normal(3, 4))
    assert_refuses(CanonicalizeAten(), program, code="batch-statistics")


# Convolutions.


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    axes, transposed, stride = draw(st.integers(1, 3)), draw(st.booleans()), draw(st.integers(1, 2))
    kind = (CONVOLUTIONS[axes], TRANSPOSED[axes])[transposed]
    layer = kind(
        4,
        6,
        2,
        stride=stride,
        padding=draw(st.integers(0, 2)),
        dilation=draw(st.integers(1, 2)),
        groups=draw(st.integers(1, 2)),
        bias=draw(st.booleans()),
        **({"output_padding": stride - 1} if transposed else {}),
    )
    return layer, normal(*([2] if draw(st.booleans()) else []), 4, *[5] * axes)


@settings(deadline=None, derandomize=True, max_examples=4)
@given(st.lists(convolutions(), min_size=3, max_size=4))
def test_decomposed_convolutions_get_their_own_operator_back(cases: list[tuple[nn.Module, Tensor]]) -> None:
    module, inputs = together(cases)
    assert_rewrites(
        CanonicalizeAten(),
        decomposed(randomised(module), *inputs),
        before={"aten.convolution": len(cases)},
        after={"aten.convolution": 0},
    )


def test_a_canonical_program_has_no_sites() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.Flatten(), nn.LayerNorm(16), nn.Linear(16, 5))
    run = run_passes(capture(randomised(module), (normal(2, 3, 3, 3),)), [CanonicalizeAten()])
    assert run.records[0].anchors == 0
