"""Compiled programs, kept between launches: a second start compiles next to nothing."""

from __future__ import annotations

import hashlib
import os
import pathlib
import platform
import tempfile
import warnings

import jax

MOST_BYTES = 2_000_000_000
"""What programs may take on the disk; those that were used longest ago go first."""
WORTHWHILE = 0.5
"""Seconds: what is compiled faster is not kept."""


def keep_programs() -> None:
    """Lets JAX keep the programs of this process, for every launcher; a folder that cannot be written ends nothing.

    They lie where `JAX_COMPILATION_CACHE_DIR` says, else in `folder()`. JAX's own variables win over what is set here;
    `JAX_ENABLE_COMPILATION_CACHE=0` keeps nothing. Only programs' launchers call this, never the library.
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
    """Where programs lie: `otbr_jax/compiled` in the user's cache, a folder for each kind of processor.

    A home may be shared by machines, and a program for one processor is not one for another.
    """
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return pathlib.Path(home) / "otbr_jax" / "compiled" / _processor()


def _unless_given(option: str, value: float) -> None:
    if option.upper() not in os.environ:
        jax.config.update(option, value)


def _processor() -> str:
    """The processor's architecture, and a hash of what it can do where Linux says it."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"
