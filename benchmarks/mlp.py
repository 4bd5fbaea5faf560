"""A backdoored MLP with hidden layers of 64 to 2048 neurons, which two CPU cores train in seconds."""

import jax
import jax.numpy as jnp
import optax

from otbr_jax.attacks import poisoning
from otbr_jax.attacks.badnets import BadNetsConfig
from otbr_jax.attacks.registry import AttackConfig, trigger
from otbr_jax.data import sources
from otbr_jax.data.sources import DataConfig

SHAPE, CLASSES, HIDDEN = (8, 8, 1), 10, (64, 128, 256, 512, 1024, 2048)
ATTACK = AttackConfig(badnets=BadNetsConfig(size=2))
STEPS, BATCH = 600, 128


def apply(variables, images):
    x = images.reshape(len(images), -1)
    for name in sorted(variables["params"]):
        layer = variables["params"][name]
        x = jax.nn.relu(x) if name != "dense0" else x
        x = x @ layer["kernel"] + layer["bias"]
    return x


def init(key):
    sizes = (SHAPE[0] * SHAPE[1], *HIDDEN, CLASSES)
    keys = jax.random.split(key, len(sizes) - 1)
    return {
        f"dense{i}": {"kernel": jax.nn.initializers.he_normal()(k, (n, m)), "bias": jnp.zeros(m)}
        for i, (k, n, m) in enumerate(zip(keys, sizes[:-1], sizes[1:], strict=True))
    }


def network():
    """`(apply, variables)`, as `--config.model.name=benchmarks/mlp.py:network` wants it; trained with Adam."""
    dataset = sources.load(DataConfig("digits"), image_shape=SHAPE, num_classes=CLASSES)
    images, labels = (jnp.asarray(part) for part in dataset.train)
    init_key, poison_key, train_key = jax.random.split(jax.random.key(0), 3)
    poisoned = poisoning.poison(images, labels, trigger(ATTACK, {}), key=poison_key, config=ATTACK, num_classes=CLASSES)
    optimizer = optax.adam(1e-3)

    def loss(params, images, labels):
        logits = apply({"params": params}, images / 255.0)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def step(params, state, key):
        chosen = jax.random.randint(key, (BATCH,), 0, len(labels))
        grads = jax.grad(loss)(params, poisoned.images[chosen], poisoned.labels[chosen])
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state

    params = init(init_key)
    state = optimizer.init(params)
    for key in jax.random.split(train_key, STEPS):
        params, state = step(params, state, key)
    return apply, {"params": params}
