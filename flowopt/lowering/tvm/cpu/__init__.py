"""Kernels for LLVM targets: legalisation, tiles and schedules."""
