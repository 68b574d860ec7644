"""Normalizations beyond torch's own: training forward, published backward, and what of them stays at inference."""
