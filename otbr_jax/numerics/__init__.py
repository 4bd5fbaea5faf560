"""Numerics: fast convolutions for each device, collectives, and counts of operations."""
