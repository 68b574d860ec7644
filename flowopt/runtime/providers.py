"""The package onnxruntime: whether it is there, which of its two distributions, and for which devices."""

import ctypes
import importlib.metadata
import warnings
from collections.abc import Sequence
from typing import Any

import torch

from flowopt.errors import MissingDependency

CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"
_INSTALL = {CPU_PROVIDER: 'pip install "flowopt[cpu]"', CUDA_PROVIDER: 'pip install "flowopt[cuda]"'}


def cuda_available() -> bool:
    """True when ONNX Runtime is built for CUDA and a CUDA device answers. A CPU build of torch does not hide one."""
    try:
        import onnxruntime
    except ImportError:
        return False
    if CUDA_PROVIDER not in onnxruntime.get_available_providers():
        return False
    return torch.cuda.is_available() or _driver_sees_device()


def with_options(providers: Sequence[str], *, allow_tf32: bool) -> list[str | tuple[str, dict[str, str]]]:
    """Providers as ONNX Runtime takes them; without TF32, CUDA computes float32 products in float32.

    Its default rounds their factors to 10 bits. The option is named only where it is needed: older versions do not
    know it.
    """
    without = {CUDA_PROVIDER: {"use_tf32": "0"}}
    return [p if allow_tf32 or p not in without else (p, without[p]) for p in providers]


def onnxruntime_for(provider: str) -> Any:
    """The package onnxruntime, once it is known to have a provider; its telemetry is off.

    Raises:
        MissingDependency: with the line to run, and which package to remove where two overwrite each other.
    """
    both = _installed("onnxruntime") and _installed("onnxruntime-gpu")
    other = "onnxruntime" if provider == CUDA_PROVIDER else "onnxruntime-gpu"
    # Uninstalling one removes files of the other, hence both and back.
    repair = f"pip uninstall -y onnxruntime onnxruntime-gpu && {_INSTALL.get(provider, _INSTALL[CPU_PROVIDER])}"
    conflict = f"onnxruntime and onnxruntime-gpu are both installed and overwrite each other; remove {other}"
    try:
        import onnxruntime
    except ImportError as error:
        if both:
            raise MissingDependency("onnxruntime does not import", why=conflict, hint=repair) from error
        install = _INSTALL.get(provider, _INSTALL[CPU_PROVIDER])
        raise MissingDependency("running an ONNX model needs onnxruntime", hint=install) from error
    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise MissingDependency(
            f"this onnxruntime has no {provider}, only {', '.join(available)}",
            why=conflict if both else "",
            hint=repair if both or provider == CUDA_PROVIDER else "pass provider='cpu'",
        )
    if both:
        warnings.warn(f"{conflict}: {repair}", RuntimeWarning, stacklevel=3)
    onnxruntime.disable_telemetry_events()
    return onnxruntime


def _driver_sees_device() -> bool:
    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    except (OSError, AttributeError):
        return False


def _installed(distribution: str) -> bool:
    try:
        return bool(importlib.metadata.version(distribution))
    except importlib.metadata.PackageNotFoundError:
        return False
