"""The vector registers a kernel may count on: how wide, and how many."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class VectorRegisters:
    """The vector registers of one processor.

    Args:
        bits: the width of one register.
        count: how many of them an instruction can name.
    """

    bits: int
    count: int

    def lanes(self, dtype: str) -> int:
        """How many values of a floating-point dtype one register holds."""
        return self.bits // _BITS[dtype]


_BITS = {"float16": 16, "bfloat16": 16, "float32": 32, "float64": 64}
_X86 = ("x86_64", "i386", "i686")


def vector_registers(target: Any) -> VectorRegisters:
    """The vector registers of an LLVM target.

    Args:
        target: a ``tvm.target.Target`` of kind ``llvm``.
    """
    from tvm.target import codegen

    triple = str(target.attrs.get("mtriple", "")) or str(codegen.llvm_get_system_triple())
    if triple.startswith(_X86):
        # llvm_get_vector_width answers 512 for every x86 processor, whatever it can do.
        if codegen.llvm_cpu_has_features("avx512f", target):
            return VectorRegisters(512, 32)
        return VectorRegisters(256 if codegen.llvm_cpu_has_features("avx", target) else 128, 16)
    return VectorRegisters(int(codegen.llvm_get_vector_width(target)), 32)
