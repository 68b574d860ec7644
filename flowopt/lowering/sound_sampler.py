"""What a sampler has to be before its parts can be joined: checked once, in words, not by a runtime."""

import torch

from flowopt.errors import InternalError, UserError
from flowopt.program.interface import TensorSpec
from flowopt.program.sampler_program import SamplerProgram

_Shape = tuple[int | str, ...]


def require_sound(program: SamplerProgram) -> None:
    """Refuse parts that do not fit together.

    Raises:
        UserError: a part keeps state of its own.
        InternalError: an input that nothing supplies, or one of another dtype or shape than what is supplied.
    """
    loop = program.loop
    parts = {"prologue": program.prologue, "step": program.step, "epilogue": program.epilogue}
    for name, part in parts.items():
        for one in part.inputs:
            if one.state is not None:
                raise UserError(
                    f"the {name} of the sampler changes {one.state!r} of its module",
                    why="what a loop carries has to be among its inputs and outputs",
                    hint="make the model a function of its inputs",
                )
    if loop.steps < 1:
        raise InternalError(f"a loop of {loop.steps} steps")
    if len(program.step.outputs) != len(loop.state):
        raise InternalError(f"{len(program.step.outputs)} outputs of the step for the state {list(loop.state)}")
    outer = program.prologue.interface
    supplied = {one.name: one for one in (*outer.inputs, *outer.outputs)}
    _require_step_inputs(program, supplied)
    taken = {one.name: one for one in program.step.interface.inputs}
    for name, output in zip(loop.state, program.step.interface.outputs, strict=True):
        _require_fits(f"the next value of {name!r}", output.dtype, output.shape, taken[name])
        supplied[name] = output
    for wanted in program.epilogue.interface.inputs:
        given = supplied.get(wanted.name)
        if given is None:
            raise InternalError(f"nothing supplies the epilogue's input {wanted.name!r}")
        _require_fits(f"{wanted.name!r} behind the loop", given.dtype, given.shape, wanted)


def _require_step_inputs(program: SamplerProgram, supplied: dict[str, TensorSpec]) -> None:
    loop = program.loop
    names = {i.name for i in program.step.inputs}
    absent = {*loop.state, *loop.tables, *loop.sequences} - names
    if absent:
        raise InternalError(f"the loop names {sorted(absent)}, which are no inputs of the step")
    for one in program.step.interface.inputs:
        if one.name in loop.tables:
            table = loop.tables[one.name]
            _require_rows(one.name, loop.steps, tuple(table.shape))
            _require_fits(f"the table of {one.name!r}", table.dtype, tuple(table.shape[1:]), one)
        elif one.name not in supplied:
            raise InternalError(f"nothing supplies the step's input {one.name!r}")
        elif one.name in loop.sequences:
            _require_rows(one.name, loop.steps, supplied[one.name].shape)
            _require_fits(f"the sequence {one.name!r}", supplied[one.name].dtype, supplied[one.name].shape[1:], one)
        else:
            _require_fits(repr(one.name), supplied[one.name].dtype, supplied[one.name].shape, one)


def _require_rows(name: str, steps: int, shape: _Shape) -> None:
    if not shape or shape[0] != steps:
        raise InternalError(f"{name!r} has the shape {list(shape)}; its first size must be the {steps} steps")


def _require_fits(what: str, dtype: torch.dtype, shape: _Shape, wanted: TensorSpec) -> None:
    """Sizes that are free are compared by the runtime: two expressions of names can mean the same."""
    is_same = len(shape) == len(wanted.shape) and all(
        size == other or isinstance(size, str) or isinstance(other, str)
        for size, other in zip(shape, wanted.shape, strict=False)
    )
    if dtype != wanted.dtype or not is_same:
        raise InternalError(f"{what} is {dtype}{list(shape)} where the sampler takes {wanted}")
