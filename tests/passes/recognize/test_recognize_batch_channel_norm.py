from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from flowopt.ir.text import operator_census
from flowopt.passes.fold.fold_batch_norm import FoldBatchNorm
from flowopt.passes.recognize.recognize_batch_channel_norm import RecognizeBatchChannelNorm
from flowopt.pipeline.runner import run_passes
from flowopt.program.capture import capture
from flowopt.testing import assert_refuses, assert_rewrites
from flowopt.verification.verify_passes import VerifyPasses
from tests.lowering.build import build
from tests.passes.programs import Written, decomposed, normal, randomised, undecomposed
from tests.passes.recognize.batch_channel_norm import BatchChannelNorm

X = normal(2, 8, 6, 5)
GROUP_NORM = {"aten.group_norm": 1, "aten.reshape": 0, "aten.mul.Tensor": 0, "aten.add.Tensor": 0}
INNER = "aten._native_batch_norm_legit.no_stats"
FREE = {"x": {0: "batch", 2: "height", 3: "width"}}


def rows_normed(x: Tensor, groups: int) -> Tensor:
    rows = x.reshape(1, x.size(0) * groups, -1)
    return torch.batch_norm(rows, None, None, None, None, True, 0, 1e-5, True)


def grouped(x: Tensor, groups: int = 4) -> Tensor:
    """Normalised, (batch, groups, values of a group)."""
    return rows_normed(x, groups).view(x.size(0), groups, -1)


def written(forward: Any, **parts: nn.Module | Tensor) -> Written:
    return randomised(Written(forward, **parts))


@pytest.mark.parametrize("free", [None, {"x": {0: "batch"}}, FREE], ids=["fixed", "batch", "all"])
def test_the_published_module_is_a_group_norm(free: Any) -> None:
    run = assert_rewrites(
        RecognizeBatchChannelNorm(),
        randomised(BatchChannelNorm(8, 4)),
        (X,),
        before={INNER: 1, "aten.reshape": 3},
        after=GROUP_NORM | {INNER: 0},
        dynamic=free,
    )
    (norm,) = run.program.graph.find_nodes(op="call_function", target=torch.ops.aten.group_norm.default)
    assert norm.args[1] == 4 and norm.args[4] == 1e-5
    assert len(run.program.dims) == (0 if free is None else len(free["x"]))


def test_gain_and_shift_are_repeated_for_the_channels_of_a_group() -> None:
    module = randomised(BatchChannelNorm(6, 2))
    run = assert_rewrites(RecognizeBatchChannelNorm(), module, (X[:, :6],), before={}, after=GROUP_NORM)
    for name in ("weight", "bias"):
        first, second = module.get_parameter(name).flatten().tolist()
        assert run.program.tensors[f"{name}_1"].tolist() == [first] * 3 + [second] * 3


def test_in_a_decomposed_program() -> None:
    program = decomposed(randomised(BatchChannelNorm(8, 4)), X)
    assert_rewrites(RecognizeBatchChannelNorm(), program, before={INNER: 1}, after=GROUP_NORM)


def test_in_a_program_that_was_never_decomposed() -> None:
    program = undecomposed(written(lambda m, x: (grouped(x) * 2.0).view(2, 8, 6, 5)), X)
    assert_rewrites(RecognizeBatchChannelNorm(), program, before={"aten.batch_norm": 1}, after={"aten.group_norm": 1})


def test_then_the_outer_norm_folds_into_the_convolution() -> None:
    module = randomised(nn.Sequential(nn.Conv2d(3, 8, 3), BatchChannelNorm(8, 4)))
    run = run_passes(
        capture(module, (normal(2, 3, 6, 6),)), [RecognizeBatchChannelNorm(), FoldBatchNorm()], [VerifyPasses()]
    )
    assert [r.outcome for r in run.records] == ["kept", "kept"]
    assert not [r for record in run.records for r in record.refused]
    assert operator_census(run.program.graph) == {"aten.conv2d": 1, "aten.group_norm": 1}


def test_it_lowers_to_the_group_norm_of_onnx(tmp_path: Path) -> None:
    program = capture(randomised(BatchChannelNorm(8, 4)), (X,), dynamic={"x": {0: "batch"}})
    artifact, lowered = build(run_passes(program, [RecognizeBatchChannelNorm()]).program, tmp_path / "model")
    assert lowered.op_census == {"BatchNormalization": 1, "GroupNormalization": 1}
    x = normal(3, 8, 6, 5, seed=1)
    torch.testing.assert_close(artifact.run(x), program.run(x), rtol=1e-5, atol=1e-5)


def test_with_and_without_gain_and_shift() -> None:
    forms: list[Any] = [
        lambda m, x: grouped(x).reshape(x.shape),
        lambda m, x: (grouped(x) * m.gain).view_as(x),
        lambda m, x: (m.shift + grouped(x)).view_as(x),
        lambda m, x: (grouped(x) * 1.5 + 0.5).view_as(x),
        lambda m, x: rows_normed(x, 4).view_as(x),
        lambda m, x: rows_normed(x, 4).view_as(x) * m.gain_of_channels + m.shift_of_channels,
        lambda m, x: (grouped(x.flatten(2), 8) * m.gain_of_channels[0, :, 0]).view_as(x),
    ]
    module = written(
        lambda m, x: [form(m, x) for form in forms],
        gain=nn.Parameter(torch.ones(4, 1)),
        shift=nn.Parameter(torch.ones(1, 4, 1)),
        gain_of_channels=nn.Parameter(torch.ones(1, 8, 1, 1)),
        shift_of_channels=nn.Parameter(torch.ones(8, 1, 1)),
    )
    run = run_passes(capture(module, (X,)), [RecognizeBatchChannelNorm()], [VerifyPasses()])
    assert run.records[0].outcome == "kept", run.records[0]
    census = operator_census(run.program.graph)
    assert census["aten.group_norm"] == len(forms)
    assert "aten.mul.Tensor" not in census and "aten.add.Tensor" not in census


def test_what_is_no_gain_or_shift_stays() -> None:
    forms: list[Any] = [
        lambda m, x: (lambda y: y * y.sigmoid())(rows_normed(x, 4).view_as(x)),
        lambda m, x: rows_normed(x, 4).view_as(x) * x.mean(),
        lambda m, x: (lambda y: y + y)(rows_normed(x, 4).view_as(x)),
    ]
    module = written(lambda m, x: [form(m, x) for form in forms])
    after = {"aten.group_norm": len(forms)}
    assert_rewrites(RecognizeBatchChannelNorm(), module, (X,), before={INNER: len(forms)}, after=after)


def test_half_precision() -> None:
    module = randomised(BatchChannelNorm(8, 2)).bfloat16()
    assert_rewrites(RecognizeBatchChannelNorm(), module, (X.bfloat16(),), before={INNER: 1}, after=GROUP_NORM)


@settings(max_examples=6, deadline=None)
@given(
    groups=st.integers(1, 3),
    per_group=st.integers(1, 3),
    batch=st.integers(1, 3),
    side=st.integers(2, 4),
    eps=st.sampled_from([1e-5, 1e-3]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_any_number_of_groups(
    groups: int, per_group: int, batch: int, side: int, eps: float, dtype: torch.dtype
) -> None:
    module = BatchChannelNorm(groups * per_group, groups, eps)
    for parameter in module.parameters():
        parameter.data.copy_(normal(*parameter.shape, seed=groups))
    x = normal(batch, groups * per_group, side, side + 1, dtype=dtype)
    assert_rewrites(RecognizeBatchChannelNorm(), module.to(dtype).eval(), (x,), before={INNER: 1}, after=GROUP_NORM)


class TestRefusals:
    def test_statistics_over_the_batch(self) -> None:
        forms: list[Any] = [
            lambda m, x: torch.batch_norm(x, None, None, None, None, True, 0, 1e-5, True),
            lambda m, x: torch.batch_norm(x.view(2, 4, -1), None, None, None, None, True, 0, 1e-5, True).view_as(x),
            lambda m, x: torch.batch_norm(x.view(1, 8, 12, 5), None, None, None, None, True, 0, 1e-5, True).view_as(x),
        ]
        run = assert_refuses(
            RecognizeBatchChannelNorm(),
            written(lambda m, x: [form(m, x) for form in forms]),
            (X,),
            code="batch-statistics",
        )
        assert len(run.records[0].refused) == len(forms)

    def test_running_statistics_that_move(self) -> None:
        def forward(m: Written, x: Tensor) -> Tensor:
            rows = x.view(1, 8, -1)
            return torch.batch_norm(rows, None, None, m.mean, m.variance, True, 0.1, 1e-5, True).view_as(x)

        module = written(forward, mean=torch.zeros(8), variance=torch.ones(8))
        assert_refuses(RecognizeBatchChannelNorm(), module, (X,), code="train-mode")

    def test_an_eval_mode_norm(self) -> None:
        program = undecomposed(nn.BatchNorm2d(8).eval(), X)
        assert_refuses(RecognizeBatchChannelNorm(), program, code="unsupported-spelling")

    def test_rows_that_are_no_groups_of_channels(self) -> None:
        forms: list[Any] = [
            # Rows that are halves of channels, rows of another order, and a result in another order.
            lambda m, x: grouped(x, 16).view_as(x),
            lambda m, x: rows_normed(x, 4).view(4, 2, -1).view_as(x),
            lambda m, x: grouped(x).reshape(2, 8, 5, 6),
            lambda m, x: grouped(x).relu(),
            lambda m, x: rows_normed(x, 4).relu(),
            lambda m, x: torch.batch_norm(x.view(1, 5, -1), None, None, None, None, True, 0, 1e-5, True).view_as(x),
        ]
        run = assert_refuses(
            RecognizeBatchChannelNorm(),
            written(lambda m, x: [form(m, x) for form in forms]),
            (X,),
            code="axis-mismatch",
        )
        assert len(run.records[0].refused) == len(forms)

    def test_a_free_number_of_groups(self) -> None:
        module = written(lambda m, x: rows_normed(x, 4).view_as(x))
        assert_refuses(RecognizeBatchChannelNorm(), module, (X,), code="dynamic-shape", dynamic={"x": {2: "height"}})

    def test_values_that_are_read_elsewhere_too(self) -> None:
        def forward(m: Written, x: Tensor) -> list[Tensor]:
            z, y = grouped(x), rows_normed(x * 2, 4)
            return [z.view_as(x), z.exp(), y.view_as(x), y.exp()]

        assert_refuses(RecognizeBatchChannelNorm(), written(forward), (X,), code="multiple-readers")

    def test_saved_statistics_that_are_read(self) -> None:
        def forward(m: Written, x: Tensor) -> tuple[Tensor, Tensor]:
            rows = x.view(1, 8, -1)
            normed, mean, _ = torch.native_batch_norm(rows, None, None, None, None, True, 0.1, 1e-5)
            return normed.view_as(x), mean

        assert_refuses(RecognizeBatchChannelNorm(), written(forward), (X,), code="multiple-readers")

    def test_a_value_that_is_an_output(self) -> None:
        def forward(m: Written, x: Tensor) -> list[Tensor]:
            z = grouped(x)
            return [z, z.view_as(x), rows_normed(x * 2, 4)]

        assert_refuses(RecognizeBatchChannelNorm(), written(forward), (X,), code="graph-output")

    def test_a_gain_that_is_computed(self) -> None:
        module = written(lambda m, x: (grouped(x) * x.mean()).view_as(x))
        assert_refuses(RecognizeBatchChannelNorm(), module, (X,), code="not-constant")

    def test_gains_of_other_things_than_groups(self) -> None:
        forms: list[Any] = [
            lambda m, x: (grouped(x) * m.of_values).view_as(x),
            lambda m, x: torch.add(grouped(x), m.of_groups, alpha=2).view_as(x),
            lambda m, x: (grouped(x) * m.of_groups.double()).view_as(x),
            lambda m, x: torch.batch_norm(x.view(1, 8, -1), m.of_rows, None, None, None, True, 0, 1e-5, True).view_as(
                x
            ),
        ]
        module = written(
            lambda m, x: [form(m, x) for form in forms],
            of_values=nn.Parameter(torch.ones(60)),
            of_groups=nn.Parameter(torch.ones(4, 1)),
            of_rows=nn.Parameter(torch.ones(8)),
        )
        run = assert_refuses(RecognizeBatchChannelNorm(), module, (X,), code="unsupported-spelling")
        assert len(run.records[0].refused) == len(forms)

    def test_an_input_without_recorded_shape(self) -> None:
        program = capture(randomised(BatchChannelNorm(8, 4)), (X,))
        del program.node("getitem").meta["val"]
        assert_refuses(RecognizeBatchChannelNorm(), program, code="missing-metadata")
