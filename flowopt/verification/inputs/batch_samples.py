"""Cases that hold samples of another case: what one sample gives may not depend on its neighbours."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch

from flowopt.ir.metadata import recorded_tensor, symbol_of
from flowopt.program.program import Dim, Program
from flowopt.verification.inputs.case import Case
from flowopt.verification.inputs.case_plan import CasePlan


def sample_plans(program: Program, whole: CasePlan) -> Iterator[CasePlan]:
    """``solo``, the second sample of a case alone, and ``permuted``, all of them in reversed order.

    There are none where inputs have no common batch, or the batch cannot have these sizes.
    """
    batch = batch_dim(program)
    count = whole.sizes[batch.name] if batch is not None else 0
    if batch is None or count < 2:
        return
    for name, chosen in (("solo", (1,)), ("permuted", tuple(reversed(range(count))))):
        sizes = whole.sizes | {batch.name: len(chosen)}
        if len(chosen) >= batch.minimum:
            yield CasePlan(name, sizes, partial(_chosen, program, whole, name, sizes, chosen))


def batch_dim(program: Program) -> Dim | None:
    """The dimension that is the first axis of every input, and of nothing else; state keeps its shape without it."""
    first: set[str | None] = set()
    elsewhere: set[str] = set()
    for one in program.inputs:
        value = recorded_tensor(program.node(one.name))
        assert value is not None
        if one.state is None:
            first.add(symbol_of(value.shape[0]) if value.dim() else None)
        for size in value.shape[0 if one.state is not None else 1 :]:
            elsewhere |= set() if isinstance(size, int) else {str(s) for s in size.node.expr.free_symbols}
    if len(first) != 1 or first <= elsewhere:
        return None
    return next((dim for dim in program.dims if dim.symbol in first), None)


def _chosen(program: Program, whole: CasePlan, name: str, sizes: dict[str, int], chosen: tuple[int, ...]) -> Case:
    case = whole.make()
    states = {one.name for one in program.inputs if one.state is not None}
    index = torch.tensor(chosen)
    inputs = {n: t if n in states else t.index_select(0, index) for n, t in case.inputs.items()}
    return replace(case, name=name, sizes=sizes, inputs=inputs, samples=(whole.name, chosen))
