"""The programs that are mutated: five zoo models and two small ones, each operator in its one spelling."""

from collections.abc import Callable
from functools import cache, partial

import flowopt
from flowopt.pipeline.runner import run_passes
from flowopt.pipeline.text import parse_pass
from flowopt.program.program import Program
from tests.mutation.small_models import deciding, pooling
from tests.zoo.models import ZOO


def _captured(name: str) -> Program:
    model = ZOO[name]()
    return flowopt.capture(model.module, (), model.kwargs, dynamic=model.dynamic, dims=model.dims)


PROGRAMS: dict[str, Callable[[], Program]] = {
    **{name: partial(_captured, name) for name in ("digits-vit", "resnet", "bert", "t5", "llama")},
    "pooling": pooling,
    "deciding": deciding,
}


@cache
def program(name: str) -> Program:
    """One of ``PROGRAMS``, after ``canonicalize-aten``."""
    return run_passes(PROGRAMS[name](), [parse_pass("canonicalize-aten")]).program
