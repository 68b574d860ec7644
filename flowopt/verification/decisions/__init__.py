"""Operators that give something else when a float lies on the other side of a boundary."""
