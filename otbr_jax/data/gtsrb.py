"""GTSRB, the German Traffic Sign Recognition Benchmark, as a data set of TensorFlow Datasets."""

from __future__ import annotations

import csv
import io
import os
import zipfile
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds
from PIL import Image

from otbr_jax.data.archives import fetch

_SITE = "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370"
ARCHIVES = {
    f"{_SITE}/GTSRB_Final_Training_Images.zip": "f33fd80ac59bff73c82d25ab499e03a3",
    f"{_SITE}/GTSRB_Final_Test_Images.zip": "c7e4e6327067d32654124b0fe9e82185",
    f"{_SITE}/GTSRB_Final_Test_GT.zip": "fe31e9c9270bbcd7b84b7f21a9d9d9e5",
}


def training_examples(archive: str | os.PathLike[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(Name in the archive, example) of each training image; folders are named after classes: 00000 to 00042."""
    with zipfile.ZipFile(archive) as file:
        for name in file.namelist():
            if name.endswith(".ppm"):
                yield name, {"image": _png(file.read(name)), "label": int(name.split("/")[-2])}


def test_examples(
    archive: str | os.PathLike[str], truth: str | os.PathLike[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(Name in the archive, example) of each test image; classes are in a table of an archive of its own."""
    with zipfile.ZipFile(truth) as file, file.open("GT-final_test.csv") as stream:
        rows = csv.DictReader(io.TextIOWrapper(stream, "utf-8"), delimiter=";")
        labels = {row["Filename"]: int(row["ClassId"]) for row in rows}
    with zipfile.ZipFile(archive) as file:
        for name in file.namelist():
            if name.endswith(".ppm"):
                yield name, {"image": _png(file.read(name)), "label": labels[name.split("/")[-1]]}


def _png(ppm: bytes) -> bytes:
    """The same pixels, in a format that takes less room."""
    with Image.open(io.BytesIO(ppm)) as image:
        buffer = io.BytesIO()
        image.save(buffer, "png")
    return buffer.getvalue()


class Gtsrb(tfds.core.GeneratorBasedBuilder):
    """Photographs of 43 kinds of traffic signs, 15 to 250 pixels wide, with about a tenth of margin around the sign.

    39,209 images for training and 12,630 for testing.
    """

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "The archives, under their own names; those missing are downloaded."

    def _info(self) -> Any:
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=43),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://benchmark.ini.rub.de/gtsrb_dataset.html",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        training, test, truth = fetch(dl_manager, ARCHIVES)
        return {
            "train": self._generate_examples(training_examples(training)),
            "test": self._generate_examples(test_examples(test, truth)),
        }

    def _generate_examples(self, examples: Iterator[tuple[str, dict[str, Any]]]) -> Any:
        return examples
