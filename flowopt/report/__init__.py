"""Frozen results, and their JSON."""
