"""Lowering to TVM: import to Relax, kernels for the CPU and for CUDA, a library that runs without torch."""
