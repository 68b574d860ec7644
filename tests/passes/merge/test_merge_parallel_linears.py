import operator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from flowopt.passes.cleanup.eliminate_common_subexpressions import EliminateCommonSubexpressions
from flowopt.passes.merge.merge_parallel_linears import MergeParallelLinears
from flowopt.pipeline.runner import PipelineRun, run_passes
from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.testing import assert_rewrites
from flowopt.verification.verify_passes import VerifyPasses
from tests.passes.merge.parallel import ALWAYS, WIDTH, Parallel, parallel
from tests.passes.programs import Written, canonical, decomposed, normal, randomised, together

X = normal(2, 4, WIDTH)
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16])


def assert_merges(
    model: nn.Module | Program, *inputs: Tensor, before: int, after: int, groups: int = 1, **options: Any
) -> PipelineRun:
    """``before`` layers become ``after``, and each group is one rewrite and one split."""
    run = assert_rewrites(
        ALWAYS,
        model,
        inputs,
        before={"aten.linear": before, "aten.split_with_sizes": 0},
        after={"aten.linear": after, "aten.split_with_sizes": groups},
        **options,
    )
    (record,) = run.records
    assert len(record.applied) == groups
    assert record.anchors == before
    return run


# Right for any layers.


@st.composite
def groups(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """Layers of one input, and that input."""
    outputs = draw(st.lists(st.integers(1, 5), min_size=2, max_size=4))
    biases = draw(st.lists(st.booleans(), min_size=len(outputs), max_size=len(outputs)))
    module = randomised(Parallel(outputs, biases), seed=draw(st.integers(0, 99)))
    shape = draw(st.lists(st.integers(1, 3), max_size=3))
    dtype = draw(DTYPES)
    return module.to(dtype), normal(*shape, WIDTH, dtype=dtype)


def assert_all_merge(cases: list[tuple[nn.Module, Tensor]]) -> None:
    module, inputs = together(cases)
    linears = sum(isinstance(part, nn.Linear) for part in module.modules())
    assert_merges(module, *inputs, before=linears, after=len(cases), groups=len(cases))


@settings(deadline=None, derandomize=True, max_examples=6)
@given(st.lists(groups(), min_size=2, max_size=3))
def test_any_layers_of_one_input_merge(cases: list[tuple[nn.Module, Tensor]]) -> None:
    assert_all_merge(cases)


@pytest.mark.slow
@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(groups(), min_size=3, max_size=4))
def test_any_of_many_groups_merge(cases: list[tuple[nn.Module, Tensor]]) -> None:
    assert_all_merge(cases)


# What is stored.


def test_every_weight_keeps_its_bits() -> None:
    module = randomised(Parallel((3, 2), (True, False)))
    run = assert_merges(module, X, before=2, after=1)
    weight, bias = run.program.tensors.values()
    first, second = module.layers
    assert torch.equal(weight, torch.cat([first.get_parameter("weight"), second.get_parameter("weight")]))
    assert torch.equal(bias, torch.cat([first.get_parameter("bias"), torch.zeros(2)]))
    assert run.records[0].added_bytes == 4 * 2  # the two zeros


def test_layers_without_bias_stay_without() -> None:
    run = assert_merges(parallel(3, 2, bias=False), X, before=2, after=1)
    (weight,) = run.program.tensors.values()
    assert weight.shape == (5, WIDTH)


def test_the_merged_weight_has_the_names_of_its_layers() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Written(
                lambda m, x: m.q(x) * m.k(x) + m.v(x), **{n: nn.Linear(WIDTH, 4) for n in ("q", "k", "v")}
            )

        def forward(self, x: Tensor) -> Tensor:
            attended: Tensor = self.inner(x)
            return attended

    run = assert_merges(randomised(Attention()), X, before=3, after=1)
    assert sorted(run.program.tensors) == ["inner.q_k_v.bias", "inner.q_k_v.weight"]


def test_many_layers_are_named_by_the_first() -> None:
    run = assert_merges(parallel(1, 2, 3, 1, 2), X, before=5, after=1)
    assert sorted(run.program.tensors) == ["linear_and_4_more.bias", "linear_and_4_more.weight"]


def test_parts_of_one_stored_matrix_merge_back() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        query, key = m.both.chunk(2)
        return nn.functional.linear(x, query) * nn.functional.linear(x, key)

    module = randomised(Written(forward, both=nn.Parameter(torch.zeros(8, WIDTH))))
    run = assert_merges(module, X, before=2, after=1)
    (weight,) = run.program.tensors.values()
    assert torch.equal(weight, module.both)


def test_a_tied_weight_is_copied_and_the_other_reader_keeps_it() -> None:
    def forward(m: Written, ids: Tensor) -> tuple[Tensor, Tensor]:
        value = m.table(ids).tanh()
        return m.head(value), m.other(value)

    module = randomised(
        Written(
            forward,
            table=nn.Embedding(7, WIDTH),
            head=nn.Linear(WIDTH, 7, bias=False),
            other=nn.Linear(WIDTH, 3, bias=False),
        )
    )
    module.head.weight = module.table.weight
    program = capture(module, (torch.arange(6).reshape(2, 3),))
    run = assert_merges(program, before=2, after=1)
    assert run.program.tensors["table.weight"] is program.tensors["table.weight"]
    assert run.records[0].added_bytes == 4 * 7 * WIDTH


def test_a_layer_called_on_two_values_merges_at_both_calls() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        y = x.flip(0)
        return (m.a(x) + m.b(x)) * (m.a(y) - m.b(y))

    module = randomised(Written(forward, a=nn.Linear(WIDTH, 4), b=nn.Linear(WIDTH, 4)))
    assert_merges(module, X, before=4, after=2, groups=2)


def test_a_group_that_others_clear_the_way_for_is_reported_as_merged() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        y, z = x.flip(0), x.flip(1)
        return m.a(x) + m.b(x) + m.a(y) + m.c(y) + m.b(z) + m.d(z)

    module = randomised(Written(forward, **{n: nn.Linear(WIDTH, 4, bias=False) for n in "abcd"}))
    # The first group would copy two weights, each of the others one; when they have theirs, it copies none.
    run = run_passes(capture(module, (X,)), [replace(ALWAYS, max_growth=100)], [VerifyPasses()])
    (record,) = run.records
    assert (record.outcome, len(record.applied)) == ("kept", 3)
    assert record.refusal_counts == {"already-rewritten": 3}


# What is a group.


def test_layers_of_different_values_stay_apart() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        return m.a(x) * m.b(x.flip(0)) + m.c(x)

    module = randomised(Written(forward, **{n: nn.Linear(WIDTH, 4) for n in ("a", "b", "c")}))
    run = assert_merges(module, X, before=3, after=2)
    assert run.records[0].refusal_counts == {"no-partner": 1, "already-rewritten": 1}


def test_a_later_layer_moves_to_the_first() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        early = m.a(x).exp()
        return early + m.b(x) * early.sum()

    module = randomised(Written(forward, a=nn.Linear(WIDTH, 4), b=nn.Linear(WIDTH, 4)))
    run = assert_merges(module, X, before=2, after=1)
    order = [n.target for n in run.program.graph.nodes if n.op == "call_function"]
    assert order.index(torch.ops.aten.linear.default) < order.index(torch.ops.aten.exp.default)


def test_a_layer_whose_weight_is_computed_stays_out_of_the_group() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        return m.a(x) + m.b(x) + nn.functional.linear(x, x[0, :4] * 2.0)

    module = randomised(Written(forward, a=nn.Linear(WIDTH, 4), b=nn.Linear(WIDTH, 4)))
    run = assert_merges(module, X, before=3, after=2)
    assert run.records[0].refusal_counts == {"not-constant": 1, "already-rewritten": 1}


def test_outputs_of_the_model_merge() -> None:
    run = assert_merges(parallel(3, 2), X, before=2, after=1)
    returned: Any = run.program.graph.output_node().args[0]
    assert [n.target for n in returned] == [operator.getitem] * 2


# Programs.


def test_free_dimensions_stay_free() -> None:
    run = assert_merges(
        parallel(3, 2), X, before=2, after=1, dynamic={"x": {0: "batch", 1: "sequence"}}, dims={"sequence": (1, 99)}
    )
    assert run.program.shape("output.1") == ("batch", "sequence", 2)


def test_decomposed_layers_merge() -> None:
    module, inputs = together([(parallel(3, 2), X), (parallel(3, 2, bias=False), X[0])])
    program = run_passes(canonical(decomposed(module, *inputs)), [EliminateCommonSubexpressions()]).program
    assert_merges(program, before=4, after=2, groups=2)


def test_a_non_contiguous_input_gives_what_the_module_gives() -> None:
    module = parallel(3, 2).double()
    x = X.double().mT.contiguous().mT
    run = assert_merges(module, x, before=2, after=1)
    torch.testing.assert_close(run.program.run_named({"x": x})["output.1"], module(x)[1], rtol=1e-12, atol=1e-12)


def test_every_linear_layer_is_a_site() -> None:
    def forward(m: Written, x: Tensor) -> Tensor:
        return m.last(m.a(x) * m.b(x))

    module = randomised(Written(forward, a=nn.Linear(WIDTH, 4), b=nn.Linear(WIDTH, 4), last=nn.Linear(4, 2)))
    (record,) = run_passes(capture(module, (X,)), [ALWAYS], [VerifyPasses()]).records
    assert (record.outcome, len(record.applied), record.anchors) == ("kept", 1, 3)
    assert record.refusal_counts == {"no-partner": 1, "already-rewritten": 1}


def test_the_summary_says_what_decided() -> None:
    run = run_passes(capture(parallel(3, 2, 2), (X,)), [MergeParallelLinears()])
    assert run.records[0].applied[0].summary == "3 linear layers -> one of 7 features: predicted gain 1.33"
