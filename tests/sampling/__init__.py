"""Samplers as tables and folded loops."""
