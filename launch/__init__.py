"""Command-line programs: flags in, exit status out."""

import sys

if sys.argv[0] == "-m":  # `python -m launch.PROGRAM`, before anything else is imported
    from launch.signals import wait_for_signals

    wait_for_signals()
    if sys.stderr.isatty():
        print("loading JAX ...", file=sys.stderr, flush=True)
