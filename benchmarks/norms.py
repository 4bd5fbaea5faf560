"""Backdoored convolutional networks with LayerNorm, and without any normalisation, trained in seconds.

    python -m launch.repair --config=configs/own_network.py --workdir=runs/norms/none \\
        --config.model.name=benchmarks/norms.py:without "--config.model.image_shape=(16, 16, 1)" \\
        --config.data.name=digits

and `:with_layer_norm`. BadNets on scikit-learn's digits, as in the default victim.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from otbr_jax.attacks import poisoning
from otbr_jax.attacks.registry import AttackConfig, trigger
from otbr_jax.data import sources
from otbr_jax.data.sources import DataConfig

SHAPE, CLASSES, WIDTHS = (16, 16, 1), 10, (16, 32, 64)
STEPS, BATCH = 800, 64


class Convolutional(nn.Module):
    """Three convolutions of stride 2, LayerNorm over channels behind each if `normed`, the mean, a classifier."""

    normed: bool

    @nn.compact
    def __call__(self, images):
        """Images `[n, 16, 16, 1]` to logits `[n, 10]`."""
        x = images
        for width in WIDTHS:
            x = nn.Conv(width, (3, 3), strides=2)(x)
            x = nn.relu(nn.LayerNorm()(x) if self.normed else x)
        return nn.Dense(CLASSES)(x.mean(axis=(1, 2)))


def trained(*, normed: bool):
    """`(apply, variables)`, as `--config.model.name` wants it; trained with Adam on poisoned digits."""
    model, attack = Convolutional(normed), AttackConfig()
    dataset = sources.load(DataConfig("digits"), image_shape=SHAPE, num_classes=CLASSES)
    images, labels = (jnp.asarray(part) for part in dataset.train)
    init_key, poison_key, train_key = jax.random.split(jax.random.key(0), 3)
    poisoned = poisoning.poison(images, labels, trigger(attack, {}), key=poison_key, config=attack, num_classes=CLASSES)
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, STEPS))

    def loss(params, images, labels):
        logits = model.apply({"params": params}, images / 255.0)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(carry, key):
        params, state = carry
        chosen = jax.random.randint(key, (BATCH,), 0, len(labels))
        gradients = jax.grad(loss)(params, poisoned.images[chosen], poisoned.labels[chosen])
        updates, state = optimizer.update(gradients, state)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def train(params):
        return jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(train_key, STEPS))[0][0]

    return model.apply, {"params": train(model.init(init_key, jnp.zeros((1, *SHAPE)))["params"])}


without = partial(trained, normed=False)
with_layer_norm = partial(trained, normed=True)
