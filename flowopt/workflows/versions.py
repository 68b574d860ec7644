"""Versions of flowopt and of the packages that decide numbers."""

from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("flowopt", "torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu")


def versions() -> dict[str, str]:
    """Installed version of each package; packages that are not installed are left out."""
    found: dict[str, str] = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
