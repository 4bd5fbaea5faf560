"""A perturbation: something is added to the whole image, as a trigger that is blended over it is."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from otbr_jax.triggers.family import TriggerFamily


def perturb(images: jax.Array, perturbation: jax.Array) -> jax.Array:
    """Images `[n, h, w, c]` in [0, 1] with a perturbation `[h, w, c]` added, cut off at 0 and 1."""
    return jnp.clip(images + perturbation, 0, 1)


PERTURBATION = TriggerFamily(
    name="perturbation",
    unit="root mean square of what is added, in units of the images",
    init=lambda key, image_shape, scale: scale * jax.random.normal(key, image_shape),
    parameters=lambda latent: latent,
    apply=perturb,
    cost=lambda perturbation: jnp.mean(perturbation**2),
    size=lambda perturbation: jnp.sqrt(jnp.mean(perturbation**2)),
)
"""Universal adversarial perturbations with a target (Moosavi-Dezfooli et al., CVPR 2017), by gradient."""
