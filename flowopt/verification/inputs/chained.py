"""A case whose state is what several calls in a row have made of it.

A ring buffer wraps, and a counter passes its bound, only after as many calls as it has places. State filled with random
numbers does not get there, and could be one that no sequence of calls leads to.
"""

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Final

from torch import Tensor

from flowopt.ir.evaluate import RUN_ERRORS, evaluate
from flowopt.program.program import Program
from flowopt.verification.inputs.case import Case
from flowopt.verification.inputs.case_plan import CasePlan
from flowopt.verification.inputs.recipe import Recipe, made

# The longest axis of state that calls are made for; one more than it has places.
_MOST_PLACES: Final = 16
_LEAST_CALLS: Final = 9


def chained_plans(program: Program, recipe: Recipe, seed: int) -> Iterator[CasePlan]:
    """``chained``: one call after as many others as the program's state has places, and one; each has its own inputs.

    There is none where the program keeps no state.

    Args:
        program: that makes the calls.
        recipe: of the inputs.
        seed: of the values.
    """
    if any(one.state is not None for one in program.outputs):
        yield CasePlan("chained", recipe.sizes, partial(_chained, program, recipe, seed))


def _chained(program: Program, recipe: Recipe, seed: int) -> Case:
    state = {i.name: program.tensors[i.state] for i in program.inputs if i.state is not None}
    calls = _calls(program)
    for call in range(calls):
        try:
            state = _next_state(program, made(program, recipe, _own_seed(seed, call)).inputs | state)
        except RUN_ERRORS:
            break  # the evidence of the case says so
    last = made(program, recipe, _own_seed(seed, calls))
    return replace(last, name="chained", inputs=last.inputs | state)


def _own_seed(seed: int, call: int) -> int:
    return zlib.crc32(f"{seed}/chained/{call}".encode())


def _calls(program: Program) -> int:
    stored = [program.tensors[i.state] for i in program.inputs if i.state is not None]
    places = [size for tensor in stored for size in tensor.shape if size <= _MOST_PLACES]
    return max([_LEAST_CALLS, *(size + 1 for size in places)])


def _next_state(program: Program, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    values = evaluate(program.graph, program.read, inputs)
    following = {o.state: value for o, value in zip(program.outputs, values, strict=True) if o.state is not None}
    return {i.name: following.get(i.state, inputs[i.name]) for i in program.inputs if i.state is not None}
