"""A program as a Relax module.

TVM's own importer (``tvm.relax.frontend.torch``) is not used: it computes products in float32 whatever their dtype,
binds what it takes for buffers into the module, and lacks RMS norms among others. Here every operator has a converter
that is compared with torch, and an operator without one is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from flowopt.errors import UserError
from flowopt.ir.metadata import source_line
from flowopt.lowering.exported import exporter_input
from flowopt.program.program import Program


@dataclass(frozen=True, slots=True)
class Imported:
    """A Relax module and its parameters.

    Attributes:
        module: ``tvm.IRModule`` with the function ``main(inputs..., parameters...)``, which returns a tuple. Its
            attribute ``num_input`` counts the inputs; ``tir_var_lower_bound`` and ``tir_var_upper_bound`` bound the
            free dimensions, by the names that they have in the shapes of the inputs.
        parameters: names in ``program.tensors``, in the order of the arguments behind the inputs.
    """

    module: Any
    parameters: tuple[str, ...]


def imported(program: Program) -> Imported:
    """The program as a Relax module whose weights are arguments of its function ``main``.

    Raises:
        UserError: as for ``imported_into``.
    """
    from tvm import relax

    builder = relax.BlockBuilder()
    parameters = imported_into(builder, program, "main")
    return Imported(builder.get(), parameters)


def imported_into(builder: Any, program: Program, name: str) -> tuple[str, ...]:
    """Add the program to a module, as a function of a name; names in ``program.tensors`` of its last arguments.

    Args:
        builder: the ``relax.BlockBuilder`` of the module.
        program: its free dimensions stay free.
        name: of the function.

    Raises:
        UserError: an operator, a dtype or a size that TVM has no form for; with the user's source line.
    """
    from tvm import tirx

    from flowopt.lowering.tvm.importing.decomposed import decomposed
    from flowopt.lowering.tvm.importing.translated import Untranslatable, translated

    exported = decomposed(exporter_input(program))
    variables = {d.symbol: tirx.Var(d.name, "int64") for d in program.dims}
    try:
        return translated(exported, variables, _scalars(program), _bounds(program), builder, name)
    except Untranslatable as error:
        raise _refusal(error.node, error.reason) from error


def _scalars(program: Program) -> Mapping[str, Tensor]:
    """Stored tensors of one number are constants of the function: kernels fold them in."""
    return {name: t.cpu() for name, t in program.tensors.items() if t.dim() == 0 and t.dtype.itemsize != 2}


def _bounds(program: Program) -> dict[str, dict[str, int]]:
    low = {d.name: d.minimum for d in program.dims}
    high = {d.name: d.maximum for d in program.dims if d.maximum is not None}
    return {key: bounds for key, bounds in (("tir_var_lower_bound", low), ("tir_var_upper_bound", high)) if bounds}


def _refusal(node: Any, reason: str) -> UserError:
    where = source_line(node)
    return UserError(
        f"TVM has no form of {node.target} (node {node.name}){f' at {where}' if where else ''}",
        why=reason,
        hint="write it with other operators, or use --target cpu",
    )
