"""Instruction sets: what a library may use, and what this machine's processor has."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

# LLVM's features are instruction sets and advice on speed, such as fast-shld-rotate; lacking advice breaks nothing.
_SETS: Final = re.compile(
    r"mmx|ss?se.*|avx.*|fma4?|f16c|bmi2?|lzcnt|popcnt|movbe|adx|aes|vaes|v?pclmul.*|gfni|sha\d*|xop|tbm|amx.*|cx16"
    r"|neon|fp-armv8|dotprod|fullfp16|fp16fml|sve.*|sme.*|i8mm|bf16|lse.*|rdm|crc"
)
# What Linux calls otherwise.
_NAMES: Final = {"pni": "sse3", "abm": "lzcnt", "bmi1": "bmi", "pclmulqdq": "pclmul", "sha_ni": "sha"}
_CPU_INFO: Final = Path("/proc/cpuinfo")


def instruction_sets(tvm: Any, processor: str) -> set[str]:
    """LLVM's names of the instruction sets that code for a processor may use."""
    target = tvm.target.Target({"kind": "llvm", "mcpu": processor})
    return {one for one in map(str, tvm.target.codegen.llvm_get_cpu_features(target)) if _SETS.fullmatch(one)}


def lacking_here(tvm: Any, wanted: Iterable[str]) -> list[str]:
    """Those of some instruction sets that this machine's processor lacks; none where nothing tells."""
    if tvm.get_global_func("target.llvm_get_system_cpu", allow_missing=True):
        return sorted(set(wanted) - instruction_sets(tvm, str(tvm.target.codegen.llvm_get_system_cpu())))
    # TVM's runtime alone has no LLVM to ask.
    flags = _linux_flags()
    return sorted(one for one in wanted if _plain(one) not in flags) if flags else []


def _linux_flags() -> set[str]:
    if not _CPU_INFO.is_file():
        return set()
    for line in _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("flags"):
            return {_plain(_NAMES.get(flag, flag)) for flag in line.partition(":")[2].split()}
    return set()


def _plain(name: str) -> str:
    """Linux writes sse4_1 and avx512_vnni, LLVM sse4.1 and avx512vnni."""
    return name.replace("_", "").replace(".", "")
