"""Causal models as a step: one token in, one token out, and what is carried from one to the next."""
