"""Capture a small module for another program, which says itself how free its sizes are."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from flowopt.errors import CaptureError
from flowopt.ir.metadata import recorded_tensor
from flowopt.ir.quiet import quiet
from flowopt.program.capture import in_eval_mode
from flowopt.program.from_exported import program_from_exported
from flowopt.program.program import Program, Provenance


def capture_freely(module: nn.Module, inputs: Mapping[str, Tensor], free: Mapping[str, Collection[int]]) -> Program:
    """A module as it is in eval mode, as a program whose free axes have no names and no ranges.

    ``torch.export`` proves for ``capture`` that a graph holds for all sizes of a range, and gives up where it cannot:
    at lengths that are filled up to whole chunks. Here it may note any range; the graph is for a program that
    propagates its own sizes through it, and is verified at several.

    Args:
        module: left as it is.
        inputs: by the names of ``forward``, at sizes of the general case: two tokens and more, several chunks and a
            rest.
        free: axes by input.

    Raises:
        CaptureError: an axis can have the captured size only, or ``torch.export`` refuses.
    """
    shapes = {name: dict.fromkeys(free.get(name, ()), torch.export.Dim.AUTO) for name in inputs}
    source = f"{type(module).__module__}.{type(module).__qualname__}"
    given = {name: tensor.detach() for name, tensor in inputs.items()}
    with quiet(), in_eval_mode(module):
        exported = torch.export.export(module, (), given, dynamic_shapes=shapes, strict=False)
        exported = exported.run_decompositions({})
    program = program_from_exported(exported, {}, Provenance(source, torch.__version__))
    for name, axes in free.items():
        value = recorded_tensor(program.node(name))
        fixed = [axis for axis in axes if value is not None and _is_number(value.shape[axis])]
        if fixed:
            raise CaptureError(
                f"{source} can be captured for one size of axis {fixed[0]} of {name!r} only",
                why="its graph would be that of the captured size",
                hint="compute with sizes as tensors have them: x.shape[2], not a number",
            )
    return program


def _is_number(size: int | torch.SymInt) -> bool:
    # Export leaves the symbol's place to a number that it has found to be the only one.
    return isinstance(size, int) or bool(size.node.expr.is_number)
