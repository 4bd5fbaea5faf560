"""Converts a network's checkpoint: `python -m launch.convert --from=victim.pt --to=victim --model=preact_resnet18`.

Formats: an Orbax checkpoint (a directory, whose name has no suffix), PyTorch (.pt, .pth, .tar, .ckpt, .bin) and
safetensors, as a file or a folder with one. Nothing in a file is executed. An Orbax checkpoint of other sizes than the
published ones needs flags that say them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from absl import flags

from launch import cli
from otbr_jax.errors import InputError
from otbr_jax.paths import CHECKPOINT, existing

FROM = flags.DEFINE_string("from", None, "Checkpoint to read.", required=True)
TO = flags.DEFINE_string("to", None, "Checkpoint to write; its suffix names the format.", required=True)
MODEL = flags.DEFINE_string("model", None, "Architecture, such as preact_resnet18 or vit_b_16.", required=True)
WIDTH = flags.DEFINE_integer("width", None, "Channels of the first stage; by default the file's, or as published.")
DEPTH = flags.DEFINE_list("depth", None, "Blocks per stage, such as 2,2,2,2; by default as published.")
ENTRY = flags.DEFINE_string("entry", "", "Which of several sets of weights to take; by default the file's first.")
CLASSES = flags.DEFINE_integer("num_classes", None, "Number of logits; by default the file's, or 10.")
IMAGE = flags.DEFINE_list("image_shape", None, "Height, width, channels; by default the file's, or 32,32,3.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replaces a checkpoint at --to.")


def main(arguments: Sequence[str]) -> None:
    """Converts and prints one line."""
    from otbr_jax.studies.convert import convert

    del arguments
    given: dict[str, Any] = {"width": WIDTH.value, "num_classes": CLASSES.value}
    given |= {"depth": _integers(DEPTH), "image_shape": _integers(IMAGE)}
    settings = {field: value for field, value in given.items() if value is not None}
    print(convert(FROM.value, TO.value, MODEL.value, settings, entry=ENTRY.value, overwrite=OVERWRITE.value))


def check() -> None:
    """Raises InputError if the flags are wrong."""
    for flag in (DEPTH, IMAGE):
        _integers(flag)
    existing(FROM.value, name="--from", expected=CHECKPOINT)


def _integers(flag: flags.FlagHolder[list[str] | None]) -> tuple[int, ...] | None:
    parts = flag.value
    try:
        return None if parts is None else tuple(int(part) for part in parts)
    except ValueError:
        text = ",".join(parts or ())
        raise InputError(f"--{flag.name}: expected whole numbers with commas, found {text!r}") from None


if __name__ == "__main__":
    cli.run(main, check=check)
