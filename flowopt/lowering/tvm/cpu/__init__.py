"""What TVM compiles for the CPU: kernels, and how they are scheduled."""
