"""Passes that put one normalization in the place of another."""
