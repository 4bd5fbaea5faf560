"""Programs of launch/ in this process: what a user would see, without the seconds that imports take."""

import contextlib
import io
import logging
import runpy
import sys
import warnings
from typing import NamedTuple

from absl import flags


class Done(NamedTuple):
    """How a program ended, as `subprocess.run` says it."""

    returncode: int
    stdout: str
    stderr: str


def launch(program, *arguments, folder="."):
    """Runs `python -m launch.PROGRAM` with these arguments; absl's flags and logging are then as they were."""
    before, handlers, level = set(flags.FLAGS), logging.root.handlers[:], logging.root.level
    argv, hook = sys.argv, sys.unraisablehook
    sys.argv = [program, *map(str, arguments)]
    out, err, code = io.StringIO(), io.StringIO(), 0
    try:
        with (
            contextlib.chdir(folder),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore", DeprecationWarning)  # of ml_collections, which loads files in an old way
            runpy.run_module(f"launch.{program}", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code or 0
    finally:
        for name in set(flags.FLAGS) - before:
            if name.startswith("config") or "launch" in flags.FLAGS.find_module_defining_flag(name, ""):
                delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)
        sys.argv, sys.unraisablehook = argv, hook
    return Done(code, out.getvalue(), err.getvalue())
