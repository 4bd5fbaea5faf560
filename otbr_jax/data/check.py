"""Whether a network that was brought knows the images that came with it, before anything is done with either."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np

from otbr_jax.data.sources import Images
from otbr_jax.errors import InputError
from otbr_jax.steps.predictions import predict
from otbr_jax.steps.sampling import stratified_sample
from otbr_jax.types import Network, Variables

ASKED = 500
"""Images that are asked about, at most."""
_BEYOND = 0.1  # of the way from chance to all right: what a network has to have learned of its own images


def check_data(network: Network, variables: Variables, images: Images, *, name: str, what: str) -> str:
    """A line about how many of them a network answers right; raises InputError if it is hardly better than chance.

    Images of another task, labels in another order and a wrong normalisation all end so; what is measured on such
    images, and repaired by them, would look like a success.

    Args:
      network: its functions, which prepare uint8 images.
      variables: its variables.
      images: uint8 `[n, h, w, c]` and their labels.
      name: the argument that names them, for the message.
      what: what they are, for the message.
    """
    chosen = stratified_sample(images.labels, min(ASKED, len(images.labels)))
    found = jax.jit(partial(predict, network, batch_size=100))(variables, images.images[chosen])
    right, chance = float(np.mean(np.asarray(found) == images.labels[chosen])), 1 / network.num_classes
    if right < chance + _BEYOND * (1 - chance):
        raise InputError(
            f"{name}: expected images that the network knows, found {what}, of which it answers {100 * right:.1f} % "
            f"right (chance is {100 * chance:.1f} %); name its own, in its order of classes, with its data.mean and "
            "data.std"
        )
    return f"the network answers {100 * right:.1f} % of {what} right; if you expect more, check data.mean and data.std"
