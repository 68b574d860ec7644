"""Calibration and training data, as it is read and batched."""
