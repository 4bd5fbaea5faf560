"""Prepares a data set: `python -m launch.prepare_data --name=gtsrb`; then `--config.data.name=gtsrb` finds it.

Downloads it (or takes the archives from --manual_dir) and writes it with TensorFlow Datasets as ArrayRecord files. This
needs the extra `prepare`: `pip install -e '.[prepare]'`; reading needs no TensorFlow. An existing data set is not
touched, and a failure leaves no files behind.
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from launch import cli

NAME = flags.DEFINE_string("name", None, "Data set: cifar10, mnist, gtsrb or tiny_imagenet.", required=True)
DATA_DIR = flags.DEFINE_string(
    "data_dir", "", "Where data sets are; by default $TFDS_DATA_DIR or ~/tensorflow_datasets."
)
MANUAL_DIR = flags.DEFINE_string("manual_dir", "", "Folder of archives that were downloaded before, under their names.")


def main(arguments: Sequence[str]) -> None:
    """Prepares and prints one line."""
    from otbr_jax.data.prepare import prepare

    del arguments
    print(prepare(NAME.value, DATA_DIR.value, MANUAL_DIR.value))


if __name__ == "__main__":
    cli.run(main)
