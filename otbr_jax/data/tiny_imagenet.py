"""Tiny ImageNet as a data set of TensorFlow Datasets; its validation images serve as test images."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from otbr_jax.data.archives import fetch

ARCHIVES = {"http://cs231n.stanford.edu/tiny-imagenet-200.zip": "90528d7ca1a48142e341f4ef8d21d0de"}
_ROOT = "tiny-imagenet-200"


def training_examples(archive: str | os.PathLike[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(Name in the archive, example) of each training image; JPEG files stay as they are.

    A label is the place of the class's WordNet number in `wnids.txt`, sorted.
    """
    with zipfile.ZipFile(archive) as file:
        labels = _labels(file)
        for name in file.namelist():
            if name.startswith(f"{_ROOT}/train/") and name.endswith(".JPEG"):
                yield name, {"image": file.read(name), "label": labels[name.split("/")[2]]}


def test_examples(archive: str | os.PathLike[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(Name in the archive, example) of each validation image; the official test images have no labels."""
    with zipfile.ZipFile(archive) as file:
        labels = _labels(file)
        with file.open(f"{_ROOT}/val/val_annotations.txt") as stream:
            for line in io.TextIOWrapper(stream, "utf-8"):
                file_name, wordnet, *_ = line.split("\t")
                name = f"{_ROOT}/val/images/{file_name}"
                yield name, {"image": file.read(name), "label": labels[wordnet]}


def _labels(file: zipfile.ZipFile) -> dict[str, int]:
    names = file.read(f"{_ROOT}/wnids.txt").decode().split()
    return {name: label for label, name in enumerate(sorted(names))}


class TinyImagenet(tfds.core.GeneratorBasedBuilder):
    """Photographs of 200 classes of ImageNet, 64 x 64: 100,000 for training and 10,000 (official validation) to test.

    Some are grey JPEG files.
    """

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "The archive, under its own name; without it, it is downloaded."

    def _info(self) -> Any:
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(64, 64, 3), encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(num_classes=200),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="http://cs231n.stanford.edu/",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        (archive,) = fetch(dl_manager, ARCHIVES)
        return {
            "train": self._generate_examples(training_examples(archive)),
            "test": self._generate_examples(test_examples(archive)),
        }

    def _generate_examples(self, examples: Iterator[tuple[str, dict[str, Any]]]) -> Any:
        return examples
