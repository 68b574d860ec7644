"""Samplers of other libraries, read off their objects by probing."""
