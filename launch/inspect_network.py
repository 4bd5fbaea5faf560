"""Inspects a network, and detects backdoors: `python -m launch.inspect_network --config.model.name=resnet18`.

The network is that of `--config.model...`, as for `launch.repair`: one of the registry, a checkpoint, or your own code.
Without other flags it prints the neuron graph; `--out` draws it. `--verify` permutes every group of neurons and
measures how far the outputs change: in a correct graph 0, but for rounding.

`--detect=DIR` says whether the network is backdoored, and for which class, from its weights alone. `--detector=NAME`
runs another detector; some need clean images, named by `--config.clean...` as for `launch.repair`.

`--scan=PATH` runs the detector on every checkpoint in a folder, or in a list with one path a line, and prints a JSON
line for each. A checkpoint of another architecture than `--config.model...` is recognised from its tensors. Exit
status: 3 if one network is backdoored; 2 if none is, but one could not be read or the detector cannot tell; 0 if all
are clean. `--stack=8` runs the detector on eight networks of one architecture at once.
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
DETECT = flags.DEFINE_string("detect", None, "Working directory; runs a detector: is the network backdoored?")
DETECTOR = flags.DEFINE_enum("detector", None, cli.choices("detectors"), "The detector; by default the defence's own.")
SCAN = flags.DEFINE_string("scan", None, "Folder, file or list of checkpoints; prints a JSON line for each.")
STACK = flags.DEFINE_integer("stack", 1, "With --scan: how many networks of one architecture run at once.")
VERIFY = flags.DEFINE_bool("verify", False, "Permutes every group and measures how far the outputs change.")

HOSTS = hosts.define_hosts()


def _say(line: dict[str, Any]) -> None:
    from tqdm import tqdm

    tqdm.write(json.dumps(line), file=sys.stdout)  # where a bar is shown, above it
    sys.stdout.flush()


def main(arguments: Sequence[str]) -> None:
    """Prints the table of the network's layers, the verdict, or a line for each checkpoint."""
    from launch import user_network
    from otbr_jax.studies.inspection import inspect
    from otbr_jax.studies.scanning import exit_status, list_checkpoints, scan

    del arguments
    config = user_network.settings(CONFIG)
    if DETECTOR.value and not (DETECT.value or SCAN.value):
        raise InputError(f"--detector: expected --detect=DIR or --scan=PATH beside it, found {DETECTOR.value!r} alone")
    if STACK.value != 1 and not SCAN.value:
        raise InputError(f"--stack: expected --scan=PATH beside it, found {STACK.value} alone")
    workdir, detector = DETECT.value, DETECTOR.value or ""
    if SCAN.value:
        if workdir or OUT.value or VERIFY.value:
            raise InputError("--scan: expected none of --detect, --out and --verify beside it, found one")
        lines = scan(config, list_checkpoints(SCAN.value), detector=detector, stack=STACK.value, say=_say)
        sys.exit(exit_status(lines))
    print(
        inspect(
            config,
            drawing=OUT.value,
            verify=VERIFY.value,
            detect_in=workdir,
            detector=detector,
            devices=HOSTS.devices(),
        )
    )


def check() -> None:
    """Raises InputError if the flags are wrong."""
    if SCAN.value:
        existing(SCAN.value, name="--scan", expected=CHECKPOINTS)


if __name__ == "__main__":
    cli.run(main, config=CONFIG, hosts=HOSTS, check=check, formerly={"judge": "detect"})
