"""The precision under which every verification runs: float32 is float32, and sums are as wide as they can be.

Where the original may use TF32 or sum in 16 bits, its own error is thousands of times larger, and so is everything
that a candidate may do wrong.

torch keeps the precision of float32 products in two places: one value for each backend and operator, which kernels
read, and what the older functions remember (``set_float32_matmul_precision``, ``allow_tf32``), which raises where the
two disagree. Both are set here.
"""

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, final

import torch

_read = torch._C._get_fp32_precision_getter
_write = torch._C._set_fp32_precision_setter
_BACKENDS: Final = ("cuda", "mkldnn")
_OTHER_OPERATORS: Final = tuple((backend, operator) for backend in _BACKENDS for operator in ("conv", "rnn"))
_LOWER: Final = ("tf32", "bf16")
_AUTOCAST_DEVICES: Final = ("cpu", "cuda", "xpu", "mps")
_SMALLEST_NORMAL, _HALF = sys.float_info.min, 0.5


@contextlib.contextmanager
def strict_float32() -> Iterator[None]:
    """Within it, nothing computes in less precision than its dtype says; everything is as before afterwards.

    Off are TF32 and bfloat16 for float32 products and convolutions, reduced sums and float16 accumulators in 16-bit
    products, autocast, flushing of denormals and the benchmarks of cuDNN, which pick another kernel each time.
    Gradient and inference modes, determinism and the default dtype stay.

    It may be entered again within itself, and by several threads: what belongs to the process is restored by the last
    one to leave. Only the calling thread's denormals are seen to: torch's workers keep flushing theirs where the first
    parallel operator ran after ``torch.set_flush_denormal(True)``.
    """
    with _PROCESS, _thread():
        yield


def describe() -> dict[str, str]:
    """The precision now in force, for reports: ``{"tf32": "off", ...}``."""
    lower = [f"{b} {o}" for b in _BACKENDS for o in ("matmul", "conv", "rnn") if _read(b, o) in _LOWER]
    matmul, cuda = torch.backends.cuda.matmul, torch.backends.cuda
    reduced = {
        "float16": matmul.allow_fp16_reduced_precision_reduction,
        "bfloat16": matmul.allow_bf16_reduced_precision_reduction,
        "attention": cuda.fp16_bf16_reduction_math_sdp_allowed(),
    }
    casting = [d for d in _AUTOCAST_DEVICES if torch.is_autocast_enabled(d)]
    return {
        "tf32": _listed(lower),
        "reduced_precision_sums": _listed([name for name, allowed in reduced.items() if allowed]),
        "float16_accumulation": "on" if matmul.allow_fp16_accumulation else "off",
        "autocast": _listed(casting),
        "denormals": "flushed" if _flushes() else "kept",
        "cudnn_benchmark": "on" if torch.backends.cudnn.benchmark else "off",
    }


def _listed(names: list[str]) -> str:
    return f"on: {', '.join(names)}" if names else "off"


@final
class _Process:
    """Settings of the whole process: the first to enter sets them, the last to leave restores them.

    Were every thread to save and restore for itself, one would restore under another that still runs, and the last
    one would leave the strict settings behind.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                with contextlib.ExitStack() as undo:
                    _strict_products(undo)
                    _strict_sums(undo)
                    self._undo = undo.pop_all()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._undo.close()


_PROCESS: Final = _Process()


def _strict_products(undo: contextlib.ExitStack) -> None:
    """Float32 products, convolutions and recurrences in float32.

    A value that says nothing inherits its parent's, and reading gives what it inherits. So parents are cleared before
    products are read, and set before convolutions are: cuDNN's start with a value of their own that gives way to a
    parent's, and that no setter could bring back.
    """
    _set(undo, "generic", "all", "none")
    for backend in _BACKENDS:
        _set(undo, backend, "all", "none")
        _set(undo, backend, "matmul", "ieee")
    _write("generic", "all", "ieee")
    for backend, operator in _OTHER_OPERATORS:
        if _read(backend, operator) != "ieee":
            _set(undo, backend, operator, "ieee")
    remembered = torch.get_float32_matmul_precision()
    if remembered != "highest":
        # Runs before the products' own values are written back: it overwrites them.
        undo.callback(torch.set_float32_matmul_precision, remembered)
        torch.set_float32_matmul_precision("highest")


def _set(undo: contextlib.ExitStack, backend: str, operator: str, value: str) -> None:
    undo.callback(_write, backend, operator, _read(backend, operator))
    _write(backend, operator, value)


def _strict_sums(undo: contextlib.ExitStack) -> None:
    """Sums of 16-bit products in float32, and the kernels that cuDNN's heuristics choose."""
    cuda = torch.backends.cuda
    for name in ("allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction"):
        _switch_off(undo, getattr(cuda.matmul, name), _reduction(name))
    _switch_off(undo, cuda.matmul.allow_fp16_accumulation, partial(setattr, cuda.matmul, "allow_fp16_accumulation"))
    _switch_off(undo, cuda.fp16_bf16_reduction_math_sdp_allowed(), cuda.allow_fp16_bf16_reduction_math_sdp)
    _switch_off(undo, torch.backends.cudnn.benchmark, partial(setattr, torch.backends.cudnn, "benchmark"))
    # Arm processors alone have such sums, and torch no public name for them.
    if getattr(torch._C, "_get_cpu_allow_fp16_reduced_precision_reduction", bool)():
        _switch_off(undo, True, getattr(torch._C, "_set_cpu_allow_fp16_reduced_precision_reduction"))  # noqa: B009


def _reduction(name: str) -> Callable[[bool], object]:
    # Whether a sum may be split is another setting, but written by the same setter.
    is_split = getattr(torch.backends.cuda.matmul, f"{name}_split_k")
    return lambda on: setattr(torch.backends.cuda.matmul, name, (on, is_split))


def _switch_off(undo: contextlib.ExitStack, is_on: bool, switch: Callable[[bool], object]) -> None:
    if is_on:
        undo.callback(switch, True)
        switch(False)


@contextlib.contextmanager
def _thread() -> Iterator[None]:
    """Settings of the calling thread: autocast and denormals."""
    with contextlib.ExitStack() as undo:
        for device in _AUTOCAST_DEVICES:
            if torch.is_autocast_enabled(device):
                undo.callback(torch.set_autocast_enabled, device, True)
                torch.set_autocast_enabled(device, False)
        _switch_off(undo, _flushes(), torch.set_flush_denormal)
        yield


def _flushes() -> bool:
    """True when denormals become zero in the calling thread; there is no getter, but Python computes the same way."""
    return _SMALLEST_NORMAL * _HALF == 0.0
