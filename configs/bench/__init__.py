"""Grids of cells for `launch.bench`: each file's `get_grid()` returns one."""
