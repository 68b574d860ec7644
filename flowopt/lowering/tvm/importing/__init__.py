"""Relax forms of ATen operators, by family."""
