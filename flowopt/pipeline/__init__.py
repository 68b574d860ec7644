"""Ordered passes: registry, presets, runner and the Instrument protocol."""
