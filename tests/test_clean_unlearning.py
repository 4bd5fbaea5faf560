import jax
import jax.numpy as jnp
import numpy as np
import pytest

from otbr_jax import Batch, InputError, UnlearningConfig, unlearn
from otbr_jax.steps.unlearn import CleanUnlearningConfig, clean_unlearning, epoch_draws

COUNT = 16


def close(a, b, rtol=2e-4):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-6), a, b)


@pytest.fixture(scope="module")
def clean(small):
    """Random images that the network knows by heart: their labels are its training-mode predictions."""
    network, variables, _ = small
    images = jax.random.uniform(jax.random.key(1), (COUNT, 8, 8, 1))
    logits, _ = jax.jit(network.train)(variables, images)
    return Batch(images, jnp.argmax(logits, axis=-1).astype(jnp.int32))


def unlearned(small, clean, key=0, **settings):
    network, variables, _ = small
    config = CleanUnlearningConfig(**{"max_epochs": 40, "batch_size": COUNT, "learning_rate": 3e-3} | settings)
    return jax.jit(lambda v, k: clean_unlearning(network, v, clean, key=k, config=config))(
        variables, jax.random.key(key)
    )


def test_it_stops_at_the_first_epoch_that_knows_no_more_than_allowed(small, clean):
    variables, info = unlearned(small, clean, stop_accuracy=0.5)
    epochs = int(info.epochs)
    assert bool(info.reached)
    assert info.accuracy[0] == 1  # or it would have been over at once
    assert 2 < epochs < 40
    assert np.all(info.accuracy[: epochs - 1] > 0.5)
    assert info.accuracy[epochs - 1] <= 0.5
    for history in (info.loss, info.accuracy):
        assert history.shape == (40,)
        assert np.all(np.isfinite(history[:epochs]))
        assert np.all(np.isnan(history[epochs:]))
    # Epochs of one batch are steps of `unlearn`, and there are no more of them.
    network, before, _ = small
    config = UnlearningConfig(steps=epochs, batch_size=COUNT, learning_rate=3e-3)
    steps, steps_info = unlearn(network, before, lambda key: clean, key=jax.random.key(0), config=config)
    close(variables, steps, rtol=1e-3)
    close(info.loss[:epochs], steps_info.loss)


def test_chance_level_is_where_it_ends_by_default(small, clean):
    _, info = unlearned(small, clean, learning_rate=1e-2)
    assert bool(info.reached)
    assert info.accuracy[info.epochs - 1] <= 1 / 10 < info.accuracy[info.epochs - 2]


def test_batches_are_epochs_parts_and_jit_agrees_with_none(small, clean):
    network, variables, _ = small
    config = CleanUnlearningConfig(max_epochs=2, batch_size=4, learning_rate=1e-3, stop_accuracy=0.01)
    key = jax.random.key(3)
    calls = []
    plain, info = clean_unlearning(
        network, variables, clean, key=key, config=config, on_epoch=lambda **kw: calls.append(kw)
    )
    jax.effects_barrier()
    jitted, jitted_info = unlearned(
        small, clean, key=3, max_epochs=2, batch_size=4, learning_rate=1e-3, stop_accuracy=0.01
    )
    close(jitted, plain)
    close(jitted_info, info)
    # The last epoch that there may be comes first.
    assert int(info.epochs) == 2
    assert not bool(info.reached)
    assert np.all(info.accuracy > 0.01)
    assert [call["loss"] for call in calls] == pytest.approx(info.loss.tolist())
    assert [call["acc"] for call in calls] == pytest.approx(info.accuracy.tolist())

    # The same by hand: the images in the order that `epoch_draws` gives, each step's images as they are.
    draws = [epoch_draws(COUNT, 4, key=jax.random.fold_in(key, epoch))[0] for epoch in range(2)]
    order = jnp.concatenate(draws)
    batches = Batch(clean.images[order], clean.labels[order])
    steps, _ = unlearn(network, variables, batches, config=UnlearningConfig(8, 4, 1e-3))
    close(plain, steps, rtol=1e-3)


def test_devices_of_a_mapped_axis_agree_with_one(small, synchronised, clean):
    _, variables, _ = small
    config = CleanUnlearningConfig(max_epochs=6, batch_size=COUNT, learning_rate=1e-3, stop_accuracy=0.01)
    parts = jax.tree.map(lambda x: x.reshape(4, COUNT // 4, *x.shape[1:]), clean)
    mapped, mapped_info = jax.pmap(
        lambda part, v: clean_unlearning(
            synchronised, v, part, key=jax.random.key(5), config=config, axis_name="devices"
        ),
        axis_name="devices",
        in_axes=(0, None),
    )(parts, variables)
    # All images are one batch, so that their order does not matter.
    single, info = unlearned(small, clean, key=5, max_epochs=6, learning_rate=1e-3, stop_accuracy=0.01)
    for device in (0, 3):
        close(jax.tree.map(lambda x, i=device: x[i], mapped), single, rtol=1e-3)
        close(mapped_info.loss[device], info.loss)
        np.testing.assert_allclose(mapped_info.accuracy[device], info.accuracy, rtol=1e-6)


@pytest.mark.parametrize(("count", "batch_size"), [(16, 4), (19, 4), (5, 5), (7, 1)])
def test_an_epoch_uses_each_image_at_most_once(count, batch_size):
    places, keys = epoch_draws(count, batch_size, key=jax.random.key(0))
    assert places.shape == (count // batch_size, batch_size)
    assert keys.shape == (count // batch_size,)
    assert len(np.unique(places)) == places.size
    assert places.min() >= 0
    assert places.max() < count
    assert len(np.unique(jax.random.key_data(keys), axis=0)) == len(keys)


def test_another_key_is_another_order():
    first, second = (epoch_draws(40, 8, key=jax.random.key(seed))[0] for seed in (0, 1))
    assert not np.array_equal(first, second)


def test_fewer_images_than_one_batch(small, clean):
    message = "batch_size: expected at most 16, as many as there are clean images, found 17"
    with pytest.raises(InputError, match=message):
        epoch_draws(16, 17, key=jax.random.key(0))
    with pytest.raises(InputError, match=message):
        unlearned(small, clean, batch_size=17)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_epochs": 0}, "unlearning.max_epochs: expected a whole number of at least 1, found 0"),
        ({"batch_size": 0}, "unlearning.batch_size: expected a whole number of at least 1, found 0"),
        ({"learning_rate": float("inf")}, "unlearning.learning_rate: expected a number above 0, found inf"),
        ({"momentum": -0.1}, r"unlearning.momentum: expected a number in \[0, 1\), found -0.1"),
        ({"stop_accuracy": 1.0}, r"unlearning.stop_accuracy: expected a number in \[0, 1\), found 1.0"),
        ({"stop_accuracy": float("nan")}, "unlearning.stop_accuracy: expected a number .* found nan"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(InputError, match=message):
        CleanUnlearningConfig(**settings)
