"""Measurements of whole nodes, run by `scripts/bench`."""
