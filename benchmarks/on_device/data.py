"""The packed CIFAR-10 as one .npz file, which the data source `npz` reads without TensorFlow Datasets."""

import importlib.util
import pathlib

import numpy as np

from otbr_jax.errors import InputError


def unpack(packs: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
    """Writes `train_images`, `train_labels`, `test_images`, `test_labels`, unless the file is there.

    Args:
      packs: the folder of the packs, with their `packs.py`.
      target: the file.

    Raises:
      InputError: if there are no packs.
    """
    if target.is_file():
        return target
    code = packs / "packs.py"
    if not code.is_file():
        raise InputError(f"--packs: expected a folder with packs.py and CIFAR-10's packs, found none at {packs}")
    spec = importlib.util.spec_from_file_location("packs", code)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        (train, train_labels), (test, test_labels) = (module.load("cifar10", split) for split in ("train", "test"))
    except OSError as error:
        raise InputError(f"--packs: expected CIFAR-10's packs in {packs}, found: {error}") from None
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial.npz")
    np.savez(partial, train_images=train, train_labels=train_labels, test_images=test, test_labels=test_labels)
    partial.rename(target)
    return target
