"""Prints and draws a network's neuron graph: `python -m launch.inspect_network --config.model.name=resnet18`.

The network is that of `--config.model...`, as for `launch.repair`: of the registry, from a checkpoint, or of your own
code. `--verify` permutes every group of neurons and says how far the outputs move: in a right graph 0, but for
rounding. `--judge=DIR` says whether a network is backdoored, and for which class, from its weights alone; or by
another method, `--detector=NAME`, which may need the clean images of `--config.clean...`, as `launch.repair` does.

`--scan=PATH` asks about every checkpoint in a folder, or in a list with one path a line: a JSON line each. Networks are
told from the files where they are others than `--config.model...`. Exit status 3: the answer is *yes* for one; 2: for
none, and one could not be read or nobody can tell; 0: it is *no* for all. `--stack=8` asks about eight networks of one
kind at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from launch import cli, hosts
from otbr_jax.errors import InputError
from otbr_jax.paths import CHECKPOINTS, existing

CONFIG = cli.define_config("own_network.py", "repair")
OUT = flags.DEFINE_string("out", None, "File for the drawing: .png, .svg or .pdf.")
JUDGE = flags.DEFINE_string("judge", None, "Working directory; asks whether the network is backdoored.")
DETECTOR = flags.DEFINE_enum(
    "detector", None, cli.choices("detectors"), "Which method is asked; by default the defence's own."
)
SCAN = flags.DEFINE_string("scan", None, "Folder, file or list of checkpoints; prints a JSON line for each.")
STACK = flags.DEFINE_integer("stack", 1, "With --scan: how many networks of one kind are asked about at once.")
VERIFY = flags.DEFINE_bool("verify", False, "Permutes every group and measures how far the outputs move.")

HOSTS = hosts.define_hosts()


def _say(line: dict[str, Any]) -> None:
    from tqdm import tqdm

    tqdm.write(json.dumps(line), file=sys.stdout)  # where a bar is shown, above it
    sys.stdout.flush()


def main(arguments: Sequence[str]) -> None:
    """Traces the network and prints its table."""
    from launch import user_network
    from otbr_jax.studies.inspection import inspect
    from otbr_jax.studies.scanning import checkpoints, scan, status

    del arguments
    config = user_network.settings(CONFIG)
    if DETECTOR.value and not (JUDGE.value or SCAN.value):
        raise InputError(f"--detector: expected --judge=DIR or --scan=PATH beside it, found {DETECTOR.value!r} alone")
    if STACK.value != 1 and not SCAN.value:
        raise InputError(f"--stack: expected --scan=PATH beside it, found {STACK.value} alone")
    judge, detector = JUDGE.value, DETECTOR.value or ""
    if SCAN.value:
        if judge or OUT.value or VERIFY.value:
            raise InputError("--scan: expected none of --judge, --out and --verify beside it, found one")
        lines = scan(config, checkpoints(SCAN.value), detector=detector, stack=STACK.value, say=_say)
        sys.exit(status(lines))
    print(
        inspect(
            config, drawing=OUT.value, verify=VERIFY.value, judge_in=judge, detector=detector, devices=HOSTS.devices()
        )
    )


def check() -> None:
    """What is wrong with the flags."""
    if SCAN.value:
        existing(SCAN.value, name="--scan", expected=CHECKPOINTS)


if __name__ == "__main__":
    cli.run(main, config=CONFIG, hosts=HOSTS, check=check)
