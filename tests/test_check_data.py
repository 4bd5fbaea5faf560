"""Images that a network does not know are refused before anything is done with them."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny_runs

from otbr_jax import InputError, Network
from otbr_jax.data.check import check_data
from otbr_jax.data.clean import CleanConfig
from otbr_jax.data.sources import DataConfig, Images
from otbr_jax.runs.checkpoints import save_checkpoint
from otbr_jax.settings import change


def counting(classes):
    """A network that answers an image with its first pixel, and 200 images with their labels."""

    def apply(variables, images):
        return jax.nn.one_hot((images[:, 0, 0, 0] * 255).round().astype(int), classes)

    labels = np.arange(200) % classes
    images = np.broadcast_to(labels[:, None, None, None], (200, 2, 2, 1)).astype(np.uint8)
    return Network(apply, image_shape=(2, 2, 1), num_classes=classes), Images(images, labels)


@pytest.mark.parametrize("classes", [2, 10])
def test_its_own_images_and_those_in_another_order(classes):
    network, images = counting(classes)
    check_data(network, {"params": {}}, images, name="data.name", what="its own")
    some = images.labels.copy()
    some[::2] = (some[::2] + 1) % classes  # half of them right are enough of ten classes, and chance of two
    for labels, refused in (((images.labels + 1) % classes, True), (some, classes == 2)):
        given = (network, {"params": {}}, Images(images.images, labels))
        if refused:
            with pytest.raises(InputError, match=r"^data.name: expected images .* knows, found .*chance is"):
                check_data(*given, name="data.name", what="others")
        else:
            check_data(*given, name="data.name", what="others")


def test_a_checkpoint_with_the_data_of_the_embedded_default(tsbd_run, tmp_path):
    """A suspicious network of another task, and nobody named its images: no success may be reported."""
    _, first, _ = tsbd_run
    random = jax.tree.map(lambda x: np.asarray(jax.random.normal(jax.random.key(0), x.shape)), first.variables)
    save_checkpoint(tmp_path / "c", jax.tree.map(abs, random))
    model = dataclasses.replace(tiny_runs.TSBD.victim.model, checkpoint=str(tmp_path / "c"))
    config = change(tiny_runs.TSBD, model=model)
    with pytest.raises(InputError, match="^data.name: .* found the test images of 'digits', of which it classifies"):
        tiny_runs.run(tmp_path / "w", config)
    np.savez(tmp_path / "own.npz", images=np.full((50, 8, 8, 1), 9, np.uint8), labels=np.arange(50) % 10)
    clean = CleanConfig(name="npz", path=str(tmp_path / "own.npz"))
    config = change(config, data=DataConfig(name="none"), clean=clean)
    with pytest.raises(InputError, match="^clean.name: expected images that the network knows, found 50 clean images"):
        tiny_runs.run(tmp_path / "w", config)
    assert not (tmp_path / "w").exists()
