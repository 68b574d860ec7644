"""Lowering to ONNX for ONNX Runtime."""
