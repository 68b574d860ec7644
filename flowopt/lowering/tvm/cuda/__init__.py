"""Relax modules become code for NVIDIA's GPUs, on machines with and without one."""
