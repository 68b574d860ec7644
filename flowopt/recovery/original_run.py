"""The original on the user's data: what it cannot take, and where it gives no numbers, is told before it is trusted."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from flowopt.errors import UserError
from flowopt.ir.evaluate import RUN_ERRORS
from flowopt.program.program import Program


def require_original_runs(
    program: Program, inputs: Mapping[str, Tensor], outputs: Collection[str], *, where: str
) -> None:
    """Run the original on one batch.

    Args:
        program: the original.
        inputs: by name, on its device; samples lie along the first axis.
        outputs: floating ones that count; all where none is named.
        where: the batch in words, such as ``batch 3 of the held-out data``.

    Raises:
        UserError: an operator does not take the batch, or an output of it holds a NaN.
    """
    try:
        found = program.run_named(program.bind((), inputs))
    except RUN_ERRORS as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"the original itself does not run on {where}: {said}",
            why="; ".join(getattr(error, "__notes__", ())),
            hint="data as the model takes it: token ids below the size of its vocabulary, and lengths that it knows",
        ) from error
    for name in outputs or found:
        value = found[name]
        if not value.is_floating_point() or not bool(value.isnan().any()):
            continue
        samples = min(map(len, inputs.values()), default=0)
        is_by_sample = value.dim() > 0 and len(value) == samples
        which = f"sample {_first_nan(value)} of {where}" if is_by_sample else where
        raise UserError(
            f"the original itself gives NaN for {which} (all of it is padding?)",
            why=f"{name} is {int(value.isnan().sum())} times no number of {value.numel()}, and nothing can agree "
            "with that; samples are counted from 0",
            hint="leave those samples out",
        )


def _first_nan(value: Tensor) -> int:
    return int(torch.nonzero(value.isnan())[0, 0])
