"""Recognize: several operators that together are one that runtimes know."""
