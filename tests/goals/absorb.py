"""Row of absorbed maps: batch norms of a graph Transformer, post-norm blocks, and what is refused."""

from collections.abc import Callable
from functools import partial

import torch

from flowopt.ir.text import operator_census
from flowopt.passes.fold.absorb_post_norm import AbsorbPostNorm
from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.workflows.pipelines import Pipeline
from tests.goals.row import Measured, Row, counted, problem_of
from tests.passes.fold import test_absorb_post_norm_refusals as refusals
from tests.passes.fold.graph_transformer import GraphTransformer, graph
from tests.passes.fold.residual import ids
from tests.passes.fold.test_absorb_post_norm import BATCH_NORM, away_from_zero, bert
from tests.passes.programs import canonical

_DEPTH = 4
# Of outputs near 1, in float64.
_LARGEST_ERROR = 1e-10
_NORMS = (BATCH_NORM, "aten.layer_norm", "aten.rms_norm", "aten.rsqrt")
_REFUSALS: dict[str, Callable[[], None]] = {
    "zero scale": refusals.test_refuses_a_scale_of_zero,
    "scales beyond float16": partial(refusals.test_refuses_scales_beyond_the_range_of_the_dtype, "free"),
    "tapped at two scales": refusals.test_refuses_a_stream_that_something_else_reads_at_two_scales,
    "tied and shared weights": refusals.test_refuses_to_copy_more_than_it_may,
    "sum around a map": refusals.test_refuses_a_sum_of_the_values_before_and_after_a_map,
    "computed writer": refusals.test_refuses_computed_values_that_are_added_behind_a_map,
    "padded convolution": refusals.test_refuses_a_shift_that_a_convolution_pads_without,
}


def _graph_transformer() -> tuple[Program, list[float]]:
    """The program after the exact preset, and its largest errors for graphs of several sizes."""
    module = away_from_zero(GraphTransformer(depth=_DEPTH)).double()
    inputs = [_double(graph(nodes, seed=nodes)) for nodes in (6, 1, 11)]
    free = {"kinds": {0: "nodes"}, "positions": {0: "nodes"}, "adjacency": {0: "nodes", 1: "nodes"}}
    program = Pipeline("exact").run(capture(module, inputs[0], dynamic=free)).program
    with torch.no_grad():
        return program, [float((program.run(*one) - module(*one)).abs().max()) for one in inputs]


def _double(inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(one.double() if one.is_floating_point() else one for one in inputs)


def check_post_norm() -> None:
    """Products and sums in place of the norms of BERT-like blocks are gone after the exact preset."""
    program = canonical(capture(bert(_DEPTH), (ids(),)))
    run = Pipeline("exact").run(program)
    left = operator_census(run.program.graph)["aten.mul.Tensor"]
    assert left == 0, f"{left} products left: {run.records}"


def _exact() -> Measured:
    program, errors = _graph_transformer()
    census = operator_census(program.graph)
    norms = sum(census[name] for name in _NORMS)
    checks = {name: problem_of(check) for name, check in _REFUSALS.items()} | {"post-norm": problem_of(check_post_norm)}
    good, short = counted(checks)
    # A second run finds nothing.
    again = AbsorbPostNorm().sites(program)
    is_met = norms == 0 and max(errors) < _LARGEST_ERROR and good == len(checks) and not again
    return Measured(f"{norms} norms, error {max(errors):.1e}, {good} of {len(checks)} other checks", is_met, short)


ROWS = (Row("absorb.exact", f"graph Transformer: 0 norms, below {_LARGEST_ERROR:.0e}; refusals", _exact),)
