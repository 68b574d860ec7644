"""Capture a bare module, once its inputs are known."""

import inspect
import shlex
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flowopt.errors import CaptureError, UserError
from flowopt.program.capture import capture
from flowopt.program.loading.example_inputs import suggested_shapes
from flowopt.program.program import Program


def program_of_module(
    module: nn.Module, inputs: Mapping[str, Tensor], what: str, *, eval_mode: bool, **options: Any
) -> Program:
    """Capture a module with example inputs by name.

    Args:
        module: in eval mode, unless ``eval_mode`` is set.
        inputs: by parameter name of ``forward``; empty: refused, with a guess to start from.
        what: what the module came from, for messages.
        eval_mode: capture it as it behaves in eval mode.
        options: ``dynamic`` and ``dims`` of ``flowopt.capture``.

    Raises:
        UserError: no inputs.
        CaptureError: train mode, inputs that do not fit, or a module that ``torch.export`` refuses.
    """
    if module.training and not eval_mode:
        raise CaptureError(
            f"{what} is in train mode (train-mode)",
            why="dropout and batch statistics would be captured as they behave in training",
            hint="or call model.eval() before it is saved",
            retry=(("--eval", ""),),
        )
    guess = suggested_shapes(module)
    if not inputs and guess:
        raise UserError(
            f"{what} says nothing about its inputs",
            why=f"torch.export needs an example of each; forward takes {', '.join(name for name, _ in guess)}\n"
            "the sizes below are a guess from the first layer: put yours in their place",
            hint="or give example tensors: --inputs inputs.npz (inputs={name: tensor})",
            retry=tuple(("--shape", f"{name}={shape}") for name, shape in guess),
        )
    _require_fit(module, inputs, what, guess)
    try:
        program = capture(module, (), inputs, eval_mode=eval_mode, **options)
        _require_runs(program, inputs, what)
        return program
    except CaptureError as error:
        # torch's words seldom name an input; often the sizes given here are what it cannot take.
        error.add_note(f"with the example inputs {', '.join(f'{n}={_described(t)}' for n, t in inputs.items())}")
        raise


def _require_runs(program: Program, inputs: Mapping[str, Tensor], what: str) -> None:
    """torch.export traces without numbers, and takes dtypes that no kernel takes."""
    state = {one.name: program.tensors[one.state] for one in program.inputs if one.state is not None}
    try:
        with torch.no_grad():
            program.run_named({**state, **{one.name: inputs[one.name] for one in program.inputs if one.state is None}})
    except (RuntimeError, IndexError) as error:
        raise CaptureError(
            f"{what} does not run on its example inputs: {(str(error).splitlines() or [type(error).__name__])[0]}",
            hint="give inputs with the dtype and the range that the model takes, such as ids=1x16:int64[0..99]",
        ) from error


def _described(tensor: Tensor) -> str:
    return f"{'x'.join(map(str, tensor.shape)) or 'scalar'}:{str(tensor.dtype).removeprefix('torch.')}"


def _require_fit(
    module: nn.Module, inputs: Mapping[str, Tensor], what: str, guess: tuple[tuple[str, str], ...]
) -> None:
    signature = inspect.signature(module.forward)
    problem = f"the inputs {', '.join(inputs)} do not fit {what}" if inputs else f"{what} does not name its inputs"
    try:
        signature.bind(**inputs)
        if inputs:
            return
    except TypeError as error:
        problem = f"{problem}: {error}" if inputs else problem
    shapes = " ".join(f"--shape {shlex.quote(f'{name}={shape}')}" for name, shape in guess)
    raise CaptureError(
        problem,
        why=f"its class has {type(module).__name__}.forward{signature}",
        hint=f"name each input that it requires, such as\n{shapes}"
        if guess
        else "give a factory that returns (model.eval(), (example_input,)): flowopt optimize my_model:factory",
    )
