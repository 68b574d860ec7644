"""ONNX files: what they would read, found in the bytes before any library parses them."""
