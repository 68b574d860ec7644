"""Fold: compute at build time what depends on parameters alone, and absorb it into its neighbours."""
