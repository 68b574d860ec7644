"""Versions of flowopt and of the packages that decide numbers."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("flowopt", "torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "apache-tvm")


def versions(more: Sequence[str] = ()) -> dict[str, str]:
    """Installed version of each package, and of some more; packages that are not installed are left out."""
    found: dict[str, str] = {}
    for package in (*_PACKAGES, *more):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
