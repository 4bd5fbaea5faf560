"""Whole methods, one file each: a plan of steps. See `defense.Defense`, and `registry` for how they are discovered."""
