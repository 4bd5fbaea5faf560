import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from otbr_jax import Batch, InputError
from otbr_jax.steps.finetune import (
    FinetuningConfig,
    FinetuningInfo,
    Progress,
    activeness_aware,
    begin,
    ended,
    finetune,
    finetune_epoch,
    next_epoch,
    optimizer_of,
    start,
    step_fn,
    variables_of,
)
from otbr_jax.types import split

CURVATURE = {"a": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "b": {"c": jnp.array([0.5, 5.0, 1.0])}}
PARAMS = {"a": jnp.array([[1.0, -2.0], [0.5, 0.1]]), "b": {"c": jnp.array([3.0, -0.2, 1.5])}}
CONFIG = FinetuningConfig(epochs=2, batch_size=8)


def quadratic(params):
    return sum(jnp.sum(h * p**2) / 2 for h, p in zip(*map(jax.tree.leaves, (CURVATURE, params)), strict=True))


def brightened(images, key):
    return images + 0.1 * jax.random.uniform(key, (len(images), 1, 1, 1))


def close(a, b, rtol=1e-4):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-6), a, b)


@pytest.fixture(scope="module")
def clean():
    keys = jax.random.split(jax.random.key(1))
    return Batch(jax.random.uniform(keys[0], (20, 8, 8, 1)), jax.random.randint(keys[1], (20,), 0, 10))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("radius", [0.05, 2.0])
def test_of_a_quadratic_loss_it_has_a_closed_form(alpha, radius):
    transform = activeness_aware(radius=radius, alpha=alpha)
    grad_fn = jax.grad(quadratic)
    updates, _ = transform.update(grad_fn(PARAMS), transform.init(PARAMS), PARAMS, grad_fn=grad_fn)

    def expected(curvature, theta):
        h, theta = np.asarray(curvature, np.float64), np.asarray(theta, np.float64)
        gradient = h * theta
        return (1 - alpha) * gradient + alpha * h * (theta + radius * gradient / np.linalg.norm(gradient))

    close(updates, jax.tree.map(expected, CURVATURE, PARAMS), rtol=1e-6)


def looked_ahead(gradients, *, radius):
    """Where `grad_fn` is called, seen from the parameters."""
    seen = []

    def grad_fn(params):
        seen.append(params)
        return jax.tree.map(jnp.zeros_like, params)

    start = jax.tree.map(jnp.zeros_like, gradients)
    transform = activeness_aware(radius=radius, alpha=0.5)
    updates, _ = transform.update(gradients, transform.init(start), start, grad_fn=grad_fn)
    chex.assert_tree_all_finite(updates)
    (step,) = seen
    return step


def test_each_tensor_moves_by_the_radius_or_not_at_all():
    gradients = {
        "large": jnp.full((3, 4), 1e30),
        "small": jnp.array([3e-30, -4e-30]),
        "none": jnp.zeros((2, 2)),
        "number": jnp.float32(-7.0),
    }
    steps = looked_ahead(gradients, radius=0.05)
    np.testing.assert_allclose(steps["small"], [0.03, -0.04], rtol=1e-5)
    np.testing.assert_allclose(steps["large"], np.full((3, 4), 0.05 / 12**0.5), rtol=1e-5)
    np.testing.assert_allclose(steps["number"], -0.05, rtol=1e-5)
    np.testing.assert_array_equal(steps["none"], 0)


def tuned(optimizer, steps=20):
    """Parameters and losses of a user's own loop."""

    @jax.jit
    def step(params, state):
        loss, grads = jax.value_and_grad(quadratic)(params)
        updates, state = optimizer.update(grads, state, params, grad_fn=jax.grad(quadratic))
        return optax.apply_updates(params, updates), state, loss

    params, state, losses = PARAMS, optimizer.init(PARAMS), []
    for _ in range(steps):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    return params, losses


@pytest.mark.parametrize("plain", [optax.adam(0.05), optax.sgd(0.02, momentum=0.5)], ids=["adam", "sgd"])
def test_in_front_of_an_optimiser_in_a_users_loop(plain):
    params, losses = tuned(optax.chain(activeness_aware(radius=0.05, alpha=0.7), plain))
    assert np.all(np.diff(losses) < 0)
    reference, _ = tuned(optax.with_extra_args_support(plain))
    assert not np.array_equal(params["a"], reference["a"])
    off, _ = tuned(optax.chain(activeness_aware(radius=0.05, alpha=0.0), plain))
    chex.assert_trees_all_equal(off, reference)


def test_what_update_needs_is_named():
    transform = activeness_aware()
    grads, state = jax.grad(quadratic)(PARAMS), transform.init(PARAMS)
    with pytest.raises(InputError, match="params: activeness_aware expected it in update"):
        transform.update(grads, state, grad_fn=jax.grad(quadratic))
    with pytest.raises(InputError, match=r"grad_fn: activeness_aware expected it in update\(grads, state, params, gr"):
        transform.update(grads, state, PARAMS)
    with pytest.raises(InputError, match="grad_fn: "):
        optax.chain(transform, optax.sgd(0.1)).update(
            grads, optax.chain(transform, optax.sgd(0.1)).init(PARAMS), PARAMS
        )


def test_a_step_is_two_gradients_and_one_more_pass_for_the_statistics(small, clean):
    network, variables, _ = small
    batch = Batch(clean.images[:8], clean.labels[:8])
    optimizer = optimizer_of(CONFIG, 1)
    carry, info = jax.jit(step_fn(network, variables, optimizer))(begin(variables, optimizer), batch)

    params, state = split(variables)

    def loss(params):
        logits, _ = network.train({"params": params, **state}, batch.images)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)), logits

    @jax.jit
    def by_hand(params):
        (value, logits), first = jax.value_and_grad(loss, has_aux=True)(params)
        ahead = jax.tree.map(lambda p, g: p + 0.05 * g / jnp.linalg.norm(g), params, first)
        second = jax.grad(loss, has_aux=True)(ahead)[0]
        moved = jax.tree.map(lambda p, g, h: p - 0.01 * (0.3 * g + 0.7 * h), params, first, second)
        accuracy = jnp.mean(jnp.argmax(logits, -1) == batch.labels)
        return moved, value, accuracy

    expected, value, accuracy = by_hand(params)
    close(carry.params, expected, rtol=1e-3)
    close(tuple(info), (value, accuracy))
    _, statistics = jax.jit(network.train)({"params": carry.params, **state}, batch.images)
    close(carry.state, statistics)
    _, earlier = jax.jit(network.train)({"params": params, **state}, batch.images)
    assert any(
        not np.allclose(a, b, rtol=1e-4) for a, b in zip(*map(jax.tree.leaves, (carry.state, earlier)), strict=True)
    )


def test_epoch_by_epoch_and_without_jit_it_is_the_same(small, clean):
    network, variables, _ = small
    key = jax.random.key(7)
    whole, info = jax.jit(lambda v: finetune(network, v, clean, key=key, config=CONFIG, augment=brightened))(variables)
    assert info.loss.shape == info.accuracy.shape == (2, 2)

    optimizer = optimizer_of(CONFIG, 1)
    step = step_fn(network, variables, optimizer)
    carry = begin(variables, optimizer)
    for index in range(2):
        # As from a checkpoint: nothing but the arrays goes on.
        carry = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), carry)
        own = jax.random.fold_in(key, index)
        carry, epoch_info = finetune_epoch(network, step, carry, clean, key=own, batch_size=8, augment=brightened)
        close(epoch_info, jax.tree.map(lambda x, i=index: x[i], info), rtol=1e-3)
    close(variables_of(carry), whole, rtol=1e-3)


def test_no_epochs_change_nothing(small, clean):
    network, variables, _ = small
    config = FinetuningConfig(epochs=0, batch_size=8)
    tuned, info = finetune(network, variables, clean, key=jax.random.key(0), config=config, augment=brightened)
    chex.assert_trees_all_equal(tuned, variables)
    assert info.loss.shape[0] == 0


def test_fewer_images_than_one_batch(small, clean):
    network, variables, _ = small
    with pytest.raises(
        InputError, match="batch_size: expected at most 20, as many as there are clean images, found 21"
    ):
        finetune(network, variables, clean, key=jax.random.key(0), config=FinetuningConfig(batch_size=21),
                 augment=brightened)  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": -1}, "finetuning.epochs: expected a whole number of at least 0, found -1"),
        ({"batch_size": 0}, "finetuning.batch_size: expected a whole number of at least 1, found 0"),
        ({"learning_rate": 0.0}, "finetuning.learning_rate: expected a number above 0, found 0.0"),
        ({"momentum": 1.0}, r"finetuning.momentum: expected a number in \[0, 1\), found 1.0"),
        ({"radius": 0.0}, "finetuning.radius: expected a number above 0, found 0.0"),
        ({"radius": float("nan")}, "finetuning.radius: expected a number above 0, found nan"),
        ({"alpha": 1.1}, r"finetuning.alpha: expected a number in \[0, 1\], found 1.1"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(InputError, match=message):
        FinetuningConfig(**settings)
    if settings.keys() <= {"radius", "alpha"}:
        with pytest.raises(InputError, match=message):
            activeness_aware(**settings)


def test_an_early_end_is_the_same_epoch_by_epoch(small, clean):
    network, variables, _ = small
    # Too long steps: the loss soon rises.
    config = FinetuningConfig(epochs=6, batch_size=8, learning_rate=10.0, patience=2)
    settings = {"key": jax.random.key(3), "augment": brightened}
    tuned, info = jax.jit(lambda v: finetune(network, v, clean, config=config, **settings))(variables)
    count = int(np.isfinite(np.mean(info.loss, axis=1)).sum())
    assert 2 < count < 6
    assert bool(jnp.isnan(info.accuracy[count:]).all())

    one_more = jax.jit(lambda progress: next_epoch(network, variables, progress, clean, config=config, **settings))
    progress, unbounded = start(variables, config, images=20), dataclasses.replace(config, patience=0)
    while not ended(progress, config):
        progress = one_more(progress)
        assert not ended(progress, unbounded)
    assert int(progress.epochs) == count
    close(tuned, variables_of(progress.tuning))


@pytest.mark.parametrize(
    ("losses", "patience", "expected"),
    [
        ([], 2, False),
        ([3.0, 2.0, 2.5], 2, False),
        ([3.0, 2.0, 2.5, 2.2], 2, True),
        ([3.0, 2.0, 2.5, 2.2], 0, False),
        ([3.0, 2.0, 2.5, 1.9], 2, False),
        ([3.0, 2.0, 2.5, 1.9, 1.8], 2, True),  # all epochs are done
        ([3.0, np.nan], 0, True),
        ([3.0, np.inf], 0, True),
    ],
)
def test_when_it_has_ended(losses, patience, expected):
    history = np.full((5, 2), np.nan, np.float32)
    history[: len(losses)] = np.array(losses, np.float32)[:, None]
    progress = Progress(None, FinetuningInfo(jnp.array(history), jnp.array(history)), jnp.int32(len(losses)))
    assert bool(ended(progress, FinetuningConfig(epochs=5, patience=patience))) == expected


def test_images_are_augmented_and_then_prepared(small):
    network, variables, _ = small
    seen = []

    def prepare(images):
        seen.append(("prepare", images.dtype, images.shape))
        return images.astype(jnp.float32) / 255

    def augment(images, key):
        seen.append(("augment", images.dtype, images.shape))
        return images

    clean = Batch(jnp.zeros((9, 8, 8, 1), jnp.uint8), jnp.zeros(9, jnp.int32))
    prepared = dataclasses.replace(network, prepare=prepare)
    tuned = lambda v: finetune(prepared, v, clean, key=jax.random.key(0), config=CONFIG, augment=augment)  # noqa: E731
    jax.eval_shape(tuned, variables)
    assert seen[:2] == [("augment", jnp.uint8, (8, 8, 8, 1)), ("prepare", jnp.uint8, (8, 8, 8, 1))]
