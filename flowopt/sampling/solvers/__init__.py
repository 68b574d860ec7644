"""Solvers written as arithmetic, each recorded as a table."""
