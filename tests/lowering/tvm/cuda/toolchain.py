"""Tests that call nvcc, where there is one."""

import shutil

import pytest

needs_nvcc = pytest.mark.skipif(
    shutil.which("nvcc") is None or shutil.which("g++") is None, reason="needs nvcc and g++ in PATH"
)
