"""Tests of the passes, one file per pass."""
