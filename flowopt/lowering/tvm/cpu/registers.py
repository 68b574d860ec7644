"""The vector registers of a target, from which every tile size is derived."""

from dataclasses import dataclass
from typing import Any

from tvm.target.codegen import llvm_get_vector_width, target_has_features


@dataclass(frozen=True, slots=True)
class Registers:
    """Vector registers of a processor: how many float32 one holds, and how many there are."""

    lanes: int
    count: int


def registers_of(target: Any) -> Registers:
    """Lanes of float32 and number of registers of an LLVM target.

    AVX-512 and 64-bit ARM have 32 vector registers, older x86 has 16. An unknown width counts as 128 bits, which every
    64-bit processor has.
    """
    bits = max(int(llvm_get_vector_width(target)), 128)
    wide = bits >= 512 or target_has_features("neon", target)
    return Registers(lanes=bits // 32, count=32 if wide else 16)
