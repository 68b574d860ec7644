"""Norms that were measured, for tests of what takes their place."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flowopt.analysis.norm_fit import NormFit
from flowopt.analysis.norm_sites import norm_sites
from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.recovery.calibrate import calibrate
from tests.passes.programs import Written, canonical, normal, randomised

WIDTH = 16


def program_of(
    function: Callable[..., Any], x: Tensor, *, free: Mapping[int, str] | None = None, **parts: nn.Module | Tensor
) -> Program:
    """The canonical program of a function of parts with random parameters; ``free`` names axes of x."""
    dynamic = {"x": dict(free)} if free else None
    return canonical(capture(randomised(Written(function, **parts)), (x,), dynamic=dynamic))


def tokens(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return normal(*shape, WIDTH, dtype=dtype, seed=4)


def measured(program: Program, *batches: Tensor, **options: Any) -> dict[str, NormFit]:
    """The fit of every norm of a program of x."""
    return calibrate(program, norm_sites(program), [{"x": x} for x in batches], **options)


def output(program: Program, x: Tensor) -> Tensor:
    """The one output of a program of x."""
    found = program.run(x)
    assert isinstance(found, Tensor)
    return found
