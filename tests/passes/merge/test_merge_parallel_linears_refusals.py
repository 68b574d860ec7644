"""Where ``merge-parallel-linears`` refuses, and why."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from flowopt.analysis.linear_group import LinearGroup
from flowopt.analysis.measured_merge import MeasuredMerge
from flowopt.passes.merge.merge_parallel_linears import MergeParallelLinears
from flowopt.pipeline.runner import run_passes
from flowopt.program.capture import capture
from flowopt.testing import assert_refuses
from tests.passes.merge.parallel import ALWAYS, WIDTH, parallel
from tests.passes.programs import Written, normal, randomised

X = normal(2, 4, WIDTH)
GROUP = LinearGroup((2, 4, WIDTH), (3, 2), torch.float32, has_bias=True)


def test_refuses_a_layer_alone() -> None:
    run = assert_refuses(ALWAYS, parallel(3), (X,), code="no-partner")
    assert "reads tanh" in run.records[0].refused[0].message


def test_refuses_where_the_model_predicts_no_gain() -> None:
    run = assert_refuses(
        MergeParallelLinears(), parallel(96, 96, bias=False, width=48), (normal(9, 48),), code="no-gain"
    )
    assert "9x48 -> 96+96 float32: predicted " in run.records[0].refused[0].message


def test_refuses_below_the_smallest_gain() -> None:
    assert_refuses(MergeParallelLinears(min_gain=1.5), parallel(3, 2), (X,), code="no-gain")


def test_refuses_what_loses_time_at_the_smallest_sizes() -> None:
    # Many narrow layers gain by columns at many rows; with one row, taking them apart costs more than it saves.
    module, x = parallel(*[8] * 3, bias=False, width=2048), normal(256, 2048)
    free = {"dynamic": {"x": {0: "rows"}}, "dims": {"rows": (1, 999)}}
    fixed = run_passes(capture(module, (x,)), [MergeParallelLinears()])
    assert fixed.records[0].outcome == "kept"
    run = assert_refuses(MergeParallelLinears(), module, (x,), code="no-gain", **free)  # type: ignore[arg-type]
    assert "1x2048 -> " in run.records[0].refused[0].message


def test_views_that_cost_nothing_gain() -> None:
    module, x = parallel(96, 96, bias=False, width=48), normal(9, 48)
    assert run_passes(capture(module, (x,)), [MergeParallelLinears(copies=False)]).records[0].applied


def tied(rows: int) -> nn.Module:
    def forward(m: Written, ids: Tensor) -> tuple[Tensor, Tensor]:
        value = m.table(ids).tanh()
        return nn.functional.linear(value, m.table.weight), m.other(value)

    return randomised(Written(forward, table=nn.Embedding(rows, WIDTH), other=nn.Linear(WIDTH, 3, bias=False)))


def test_refuses_copies_beyond_the_growth_that_is_allowed() -> None:
    ids = (torch.arange(6).reshape(2, 3),)
    run = assert_refuses(replace(ALWAYS, max_growth=100), tied(7), ids, code="grows-too-much")
    assert "240 bytes of merged weights would take the place of 72; max_growth is 100" in (
        run.records[0].refused[0].message
    )


def test_refuses_computed_weights_and_biases() -> None:
    def forward(m: Written, x: Tensor) -> list[Tensor]:
        biased = nn.functional.linear(x, m.weight, x[0, 0, :4])
        return [biased, nn.functional.linear(x, x[0]), nn.functional.linear(x, m.weight[:2] + x[0, :2])]

    module = randomised(Written(forward, weight=nn.Parameter(torch.zeros(4, WIDTH))))
    assert_refuses(ALWAYS, module, (X,), code="not-constant")


def test_refuses_state() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", torch.zeros(4, WIDTH))

        def forward(self, x: Tensor) -> Tensor:
            weight = self.get_buffer("weight")
            result = nn.functional.linear(x, weight) + nn.functional.linear(x, weight).exp()
            weight.add_(1.0)
            return result

    assert_refuses(ALWAYS, Counting().eval(), (X,), code="not-constant")


@pytest.mark.parametrize("form", ["codes", "codebook", "8-bit"])
def test_refuses_quantized_weights(form: str) -> None:
    def forward(m: Written, x: Tensor) -> list[Tensor]:
        weight = m.table[m.codes] if form == "codebook" else m.codes.to(x.dtype) * 0.1
        return [nn.functional.linear(x, weight), nn.functional.linear(x, weight + 1.0)]

    codes = torch.arange(4 * WIDTH).reshape(4, WIDTH)
    stored = {"codes": codes.to(torch.int8), "codebook": codes % 5, "8-bit": codes.to(torch.float8_e4m3fn)}[form]
    module = Written(forward, codes=stored, table=normal(5)).eval()
    run = assert_refuses(ALWAYS, module, (X,), code="quantized-weight")
    assert "is computed from codes" in run.records[0].refused[0].message


def test_a_mask_is_no_quantized_weight() -> None:
    def forward(m: Written, x: Tensor) -> list[Tensor]:
        return [nn.functional.linear(x, m.weight * m.mask), nn.functional.linear(x, m.weight)]

    weight = nn.Parameter(normal(4, WIDTH))
    module = Written(forward, weight=weight, mask=normal(4, WIDTH) > 0).eval()
    assert run_passes(capture(module, (X,)), [ALWAYS]).records[0].applied


def test_refuses_rows_that_depend_on_data() -> None:
    def forward(m: Written, x: Tensor) -> list[Tensor]:
        rows = x[(x[:, 0] > 0).nonzero()[:, 0]]
        return [m.a(rows), m.b(rows)]

    module = randomised(Written(forward, a=nn.Linear(WIDTH, 4), b=nn.Linear(WIDTH, 4)))
    assert_refuses(ALWAYS, module, (X[0],), code="dynamic-shape")


def test_refuses_vectors_and_complex_weights() -> None:
    def forward(m: Written, x: Tensor) -> list[Tensor]:
        weight = torch.complex(m.weight, m.weight)
        z = torch.complex(x, x)
        complex_ones = [nn.functional.linear(z, weight).real, nn.functional.linear(z, 2.0 * weight).real]
        return [nn.functional.linear(x, m.weight[0]), nn.functional.linear(x, m.weight[1]), *complex_ones]

    module = randomised(Written(forward, weight=nn.Parameter(torch.zeros(4, WIDTH))))
    assert_refuses(ALWAYS, module, (X,), code="unsupported-spelling")


def test_refuses_a_bias_that_is_broadcast() -> None:
    def forward(m: Written, x: Tensor) -> list[Tensor]:
        flat = x.flatten(0, 1)
        return [nn.functional.linear(flat, m.weight, m.weight[0, :1]), nn.functional.linear(flat, m.weight, m.rows)]

    module = randomised(Written(forward, weight=nn.Parameter(torch.zeros(4, WIDTH)), rows=nn.Parameter(normal(8, 4))))
    assert_refuses(ALWAYS, module, (X,), code="unsupported-spelling")


def test_refuses_without_metadata() -> None:
    def forward(m: Written, x: Tensor) -> list[Tensor]:
        half = x.chunk(2, -1)[0]
        return [m.a(half), m.b(half)]

    program = capture(randomised(Written(forward, a=nn.Linear(3, 4), b=nn.Linear(3, 4))), (X,))
    del program.node("getitem").meta["val"]
    assert_refuses(ALWAYS, program, code="missing-metadata")


# Measured choices.


def test_a_measured_loss_is_followed_against_the_model() -> None:
    choice = MeasuredMerge("linear", GROUP, merge=False, gain=0.9)
    run = assert_refuses(MergeParallelLinears(measured=(choice,)), parallel(3, 2), (X,), code="no-gain")
    assert run.records[0].refused[1].message == "2x4x6 -> 3+2 float32 with bias: measured gain 0.90"


def test_a_measured_gain_is_followed_against_the_model() -> None:
    choice = MeasuredMerge("linear", GROUP, merge=True, gain=1.25)
    run = run_passes(capture(parallel(3, 2), (X,)), [MergeParallelLinears(min_gain=9.0, measured=(choice,))])
    assert run.records[0].applied[0].summary == "2 linear layers -> one of 5 features: measured gain 1.25"


def test_a_choice_for_another_site_leaves_the_model_to_decide() -> None:
    choice = MeasuredMerge("linear_7", GROUP, merge=False, gain=0.9)
    run = run_passes(capture(parallel(3, 2, 2), (X,)), [MergeParallelLinears(measured=(choice,))])
    assert "predicted" in run.records[0].applied[0].summary


@pytest.mark.parametrize(
    ("site", "group"),
    [
        ("linear", replace(GROUP, input_shape=(9, 4, WIDTH))),
        ("linear", replace(GROUP, outputs=(2, 3))),
        ("linear_1", GROUP),
    ],
    ids=["other rows", "other layers", "another first layer"],
)
def test_refuses_a_choice_for_other_sizes(site: str, group: LinearGroup) -> None:
    choice = MeasuredMerge(site, group, merge=True, gain=2.0)
    assert_refuses(MergeParallelLinears(measured=(choice,)), parallel(3, 2), (X,), code="stale-choice")
