"""Merge: parallel operators that read one value become one operator."""
