"""Cleanup: eliminate what has no effect, give each operator one spelling, simplify."""
