"""Lowering to libraries that Apache TVM compiles."""
