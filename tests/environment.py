"""What the tests, and the programs that they start, find in the environment: to be imported before JAX."""

import atexit
import os
import shutil
import sys
import tempfile


def shared_folder(variable):
    """What that variable names: a folder for this process and those that it starts, which goes with this one."""
    if variable not in os.environ:
        os.environ[variable] = tempfile.mkdtemp(prefix="otbr_jax_tests_")
        atexit.register(shutil.rmtree, os.environ[variable], ignore_errors=True)
    return os.environ[variable]


BEFORE = dict(os.environ)
# Eight simulated devices, so that every test of sharding is a real one.
DEVICES = "--xla_force_host_platform_device_count=8"
# Most of a tiny network's time is compilation; each of these halves it.
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = " ".join(
    (DEVICES, QUICK, os.environ.get("XLA_FLAGS", ""))
)  # of two that differ the last wins
os.environ.setdefault("TQDM_DISABLE", "1")
# Programs are compiled once for all workers, also the many small ones.
shared_folder("JAX_COMPILATION_CACHE_DIR")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
    # So are modules, where none would be kept: those that JAX imports take seconds in every process.
    sys.dont_write_bytecode, sys.pycache_prefix = False, shared_folder("PYTHONPYCACHEPREFIX")
