"""Command-line programs: flags in, exit status out."""

import sys

if sys.argv[0] == "-m":  # `python -m launch.PROGRAM`, before anything else is imported
    from launch.signals import wait_for_signals

    wait_for_signals()
