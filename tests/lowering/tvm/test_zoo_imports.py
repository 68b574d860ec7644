"""Every architecture of the zoo, optimized by the exact preset, as TVM runs it: at two sizes, against float64.

`python -m tests.lowering.tvm.test_zoo_imports [names]` prints the table.
"""

import sys

import pytest
import torch
from torch import Tensor

from flowopt.errors import UserError
from flowopt.pipeline.presets import DEFAULT_PRESET
from flowopt.pipeline.runner import run_passes
from flowopt.pipeline.text import parse_pipeline
from flowopt.program.capture import capture
from flowopt.program.program import Program
from tests.lowering.tvm.compare import compiled, raised, require_near
from tests.zoo.architectures import ARCHITECTURES
from tests.zoo.capture import resized_input
from tests.zoo.zoo_model import ZooModel

pytest.importorskip("tvm")

QUICK = ("distilbert", "beit")


def optimized(model: ZooModel) -> Program:
    program = capture(model.module, (), model.kwargs, dynamic=model.dynamic, dims=model.dims)
    return run_passes(program, parse_pipeline(DEFAULT_PRESET)).program


def sizes_to_try(model: ZooModel) -> list[dict[str, int]]:
    """The smallest of every dimension, and sizes that differ from each other and from the example's."""
    least = {name: low for name, (low, _) in model.dims.items()}
    return [least, {name: min(high, 5 + k) for k, (name, (_, high)) in enumerate(model.dims.items())}]


def inputs_of(model: ZooModel, sizes: dict[str, int]) -> dict[str, Tensor]:
    made = {name: _input(model, name, value, sizes) for name, value in model.kwargs.items()}
    return {name: value for name, value in made.items() if isinstance(value, Tensor)}


def _input(model: ZooModel, name: str, value: Tensor | bool, sizes: dict[str, int]) -> Tensor | bool:
    if not isinstance(value, Tensor) or value.is_floating_point() or value.dim() == 2:
        return resized_input(model, name, value, sizes, seed=3)
    # Times and classes: integers of one axis.
    shape = [
        sizes[model.dynamic[name][a]] if a in model.dynamic.get(name, {}) else n for a, n in enumerate(value.shape)
    ]
    return torch.randint(0, int(value.max()) + 1, shape, generator=torch.Generator().manual_seed(3))


def require_model(name: str) -> None:
    model = ARCHITECTURES[name]()
    program = optimized(model)
    run, twin = compiled(program), program.raised_copy()
    for sizes in sizes_to_try(model):
        given = {k: v for k, v in inputs_of(model, sizes).items() if k in {i.name for i in program.inputs}}
        bound = program.bind((), given)
        eager, exact, found = program.run_named(bound), twin.run_named(raised(bound)), run(bound)
        for output, wanted in eager.items():
            require_near(found[output], wanted, exact[output], f"{name}, {output} at {sizes}")


@pytest.mark.parametrize("name", QUICK)
def test_a_small_architecture_runs_as_in_torch(name: str) -> None:
    require_model(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in ARCHITECTURES if n not in QUICK])
def test_every_architecture_runs_as_in_torch(name: str) -> None:
    require_model(name)


if __name__ == "__main__":
    for architecture in sys.argv[1:] or ARCHITECTURES:
        try:
            require_model(architecture)
            print(f"{architecture:20s} equivalent", flush=True)
        except UserError as refusal:
            print(f"{architecture:20s} refused: {refusal.message}", flush=True)
        except AssertionError as difference:
            print(f"{architecture:20s} WRONG: {difference}", flush=True)
