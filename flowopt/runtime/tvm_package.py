"""The package tvm: whether it is there, and whether it is Apache TVM. Imports no torch of its own."""

import importlib.metadata
from typing import Any

from flowopt.errors import MissingDependency

_INSTALL = 'pip install "flowopt[tvm]"'


def tvm_package() -> Any:
    """The package ``tvm``, once it is known to be Apache TVM with the virtual machine of Relax.

    Raises:
        MissingDependency: with the line to run; PyPI's project ``tvm`` is another program.
    """
    foreign = _version("tvm") is not None
    repair = f"pip uninstall -y tvm && {_INSTALL}" if foreign else _INSTALL
    why = "the installed package 'tvm' is an unrelated project; Apache TVM is called 'apache-tvm'" if foreign else ""
    try:
        import tvm
        import tvm.runtime.vm
    except ImportError as error:
        if _version("apache-tvm") is not None:
            raise MissingDependency(
                "apache-tvm is installed, but does not import", why=why or str(error), hint=repair
            ) from error
        raise MissingDependency("the targets tvm and tvm-cuda need apache-tvm", why=why, hint=repair) from error
    if not hasattr(tvm.runtime.vm, "VirtualMachine"):
        raise MissingDependency(
            "this package 'tvm' has no virtual machine of Relax",
            why=why or f"it is version {getattr(tvm, '__version__', 'unknown')}, which is too old",
            hint=repair,
        )
    return tvm


def cuda_device_available() -> bool:
    """True when TVM can reach a CUDA device."""
    try:
        tvm = tvm_package()
    except MissingDependency:
        return False
    return bool(tvm.cuda(0).exist)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
