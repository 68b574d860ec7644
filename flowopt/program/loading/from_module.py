"""Capture a bare module, once its inputs are known."""

from collections.abc import Mapping
from typing import Any

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
    if not inputs:
        guess = suggested_shapes(module)
        raise UserError(
            f"{what} says nothing about its inputs",
            why=f"torch.export needs an example of each; forward takes {', '.join(name for name, _ in guess)}, and "
            "the sizes below are a guess from the first layer: put yours in their place",
            hint="or give example tensors: --inputs inputs.npz (inputs={name: tensor})",
            retry=tuple(("--shape", f"{name}={shape}") for name, shape in guess),
        )
    return capture(module, (), inputs, eval_mode=eval_mode, **options)
