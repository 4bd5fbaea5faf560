"""Flax networks, by name in `registry.py`."""
