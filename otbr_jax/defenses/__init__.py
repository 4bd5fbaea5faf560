"""Whole methods, one file each: a short composition of the core functions."""
