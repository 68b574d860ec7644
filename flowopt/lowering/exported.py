"""The form of a program that torch's exporters take."""

from torch.export import ExportedProgram

from flowopt.program.program import Program
from flowopt.program.to_exported import to_exported


def exporter_input(program: Program) -> ExportedProgram:
    """The program as an ``ExportedProgram`` without example inputs.

    Examples would be stored in a ``.pt2``: they are somebody's data. They also switch on guards, which artifacts
    check themselves, with better words.
    """
    exported = to_exported(program)
    exported.example_inputs = None
    return exported
