"""The registers of a target in float32, from which the tiles of products are derived."""

from dataclasses import dataclass
from typing import Any

from flowopt.lowering.tvm.cpu.vector_registers import vector_registers


@dataclass(frozen=True, slots=True)
class Registers:
    """Vector registers of a processor: how many float32 one holds, and how many there are."""

    lanes: int
    count: int


def registers_of(target: Any) -> Registers:
    """Lanes of float32 and number of registers of an LLVM target."""
    found = vector_registers(target)
    return Registers(lanes=found.lanes("float32"), count=found.count)
