"""Compiled programs are kept between launches: a second start compiles next to nothing."""

from __future__ import annotations

import hashlib
import os
import pathlib
import platform
import tempfile
import warnings

import jax

MOST_BYTES = 2_000_000_000
"""The most that programs may take on the disk; the least recently used ones are removed first."""
WORTHWHILE = 0.5
"""Seconds: programs that compile faster are not kept."""


def keep_programs() -> None:
    """Turns on JAX's compilation cache, for every launcher; a folder that cannot be written is no error.

    Programs are kept where `JAX_COMPILATION_CACHE_DIR` says, else in `folder()`. JAX's own variables take precedence;
    `JAX_ENABLE_COMPILATION_CACHE=0` keeps nothing. Only launchers call this, never the library.
    """
    # A full disk, or an entry that was cut short: the program is compiled, as without a folder.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache")
    _unless_given("jax_persistent_cache_min_compile_time_secs", WORTHWHILE)
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    path = folder()
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError:
        return
    _unless_given("jax_compilation_cache_max_size", MOST_BYTES)
    jax.config.update("jax_compilation_cache_dir", str(path))


def folder() -> pathlib.Path:
    """Where programs are kept: `otbr_jax/compiled` in the user's cache, a folder for each kind of processor.

    Machines may share a home, and a program for one processor does not run on another.
    """
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return pathlib.Path(home) / "otbr_jax" / "compiled" / _processor()


def _unless_given(option: str, value: float) -> None:
    if option.upper() not in os.environ:
        jax.config.update(option, value)


def _processor() -> str:
    """The processor's architecture, and on Linux a hash of its features."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"
