"""What lies in a file, read without any library that could run it: no torch, no onnx, no pickle."""
