"""Recognize that memory ran out from what a library says about it."""

# As torch and onnxruntime, the C++ library, the dynamic linker and Python word it.
_PHRASES = (
    "allocate memory",
    "enough memory",
    "DefaultCPUAllocator",
    "bad_alloc",
    "bad allocation",
    "failed to map segment",
    "MemoryError",
)


def speaks_of_shortage(text: str) -> bool:
    """Whether a message, or the last words of a process, say that memory ran out."""
    return any(phrase in text for phrase in _PHRASES)
