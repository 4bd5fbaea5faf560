"""Does a user's network know the images that came with it? Checked before anything else is done with either."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np

from otbr_jax.data.sources import Images
from otbr_jax.errors import InputError
from otbr_jax.steps.predictions import predict
from otbr_jax.steps.sampling import stratified_sample
from otbr_jax.types import Network, Variables

MOST_IMAGES = 500
"""Images that are predicted, at most."""
_BEYOND = 0.1  # least accuracy, as a share of the way from chance to 1


def check_data(network: Network, variables: Variables, images: Images, *, name: str, what: str) -> str:
    """Checks a network's accuracy on images: a line about it; raises InputError if it is hardly better than chance.

    Images of another task, labels in another order and a wrong normalisation all give such an accuracy. A repair with
    such images, measured on them, would look like a success.

    Args:
      network: its functions, which prepare uint8 images.
      variables: its variables.
      images: uint8 `[n, h, w, c]` and their labels.
      name: the argument that names them, for the message.
      what: what they are, for the message.
    """
    chosen = stratified_sample(images.labels, min(MOST_IMAGES, len(images.labels)))
    predictions = jax.jit(partial(predict, network, batch_size=100))(variables, images.images[chosen])
    right, chance = float(np.mean(np.asarray(predictions) == images.labels[chosen])), 1 / network.num_classes
    if right < chance + _BEYOND * (1 - chance):
        raise InputError(
            f"{name}: expected images that the network knows, found {what}, of which it classifies {100 * right:.1f} % "
            f"correctly (chance is {100 * chance:.1f} %); name its own, in its order of classes, with its data.mean "
            "and data.std"
        )
    accuracy = f"the network classifies {100 * right:.1f} % of {what} correctly"
    return f"{accuracy}; if you expect more, check data.mean and data.std"
