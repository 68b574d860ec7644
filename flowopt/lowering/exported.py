"""The form of a program that torch's exporters take."""

from torch.export import ExportedProgram

from flowopt.program.program import Program
from flowopt.program.to_exported import to_exported


def exporter_input(program: Program) -> ExportedProgram:
    """The program as an ``ExportedProgram`` whose inputs keep their names when it is traced again, without examples."""
    exported = to_exported(program)
    signature = exported.module_call_graph[0].signature
    assert signature is not None, "to_exported writes the signature of the top module"
    # Without argument names a second trace calls the inputs arg_0, ... and then fails its own consistency check.
    signature.forward_arg_names = [i.name for i in program.inputs]
    # Examples would be stored in a .pt2: they are somebody's data. They also switch guards on, which artifacts check
    # themselves, with better words.
    exported.example_inputs = None
    return exported
