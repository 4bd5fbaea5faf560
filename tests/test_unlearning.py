import jax
import jax.numpy as jnp
import numpy as np
import pytest

from otbr_jax import Batch, InputError, UnlearningConfig, noise_batches, random_unlearning, unlearn
from otbr_jax.runs.devices import batch_mesh, replicate, shared
from otbr_jax.types import split


def close(a, b, rtol=2e-4):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-6), a, b)


def test_noise_is_uniform_and_labels_cover_all_classes(small):
    network, *_ = small
    images, labels = jax.jit(noise_batches(network, batch_size=2000))(jax.random.key(0))
    assert images.shape == (2000, 8, 8, 1)
    assert float(images.min()) >= 0
    assert float(images.max()) < 1
    np.testing.assert_allclose([images.mean(), images.std()], [0.5, 12**-0.5], atol=0.01)
    counts = np.bincount(labels, minlength=10)
    assert counts.min() > 140
    assert counts.max() < 260


def test_devices_make_their_own_parts_of_the_same_batch(small):
    network, *_ = small
    whole = noise_batches(network, batch_size=16)(jax.random.key(1))
    part = noise_batches(network, batch_size=16, axis_name="devices")
    parts = jax.pmap(lambda _: part(jax.random.key(1)), axis_name="devices")(jnp.arange(8))
    np.testing.assert_array_equal(parts.images.reshape(whole.images.shape), whole.images)
    np.testing.assert_array_equal(parts.labels.reshape(-1), whole.labels)


def test_no_device_ever_holds_the_whole_batch_of_noise(small):
    """Under jit with a mesh too: the compiled program has each device's part only, and nothing is gathered."""
    network, variables, _ = small
    mesh = batch_mesh()
    config = UnlearningConfig(steps=2, batch_size=56)
    jitted = jax.jit(lambda v, key: random_unlearning(shared(network, mesh), v, key=key, config=config))
    program = jitted.lower(*replicate((variables, jax.random.key(0)), mesh)).compile().as_text()
    assert "[7,8,8,1]" in program
    assert "[56,8,8,1]" not in program
    assert "all-gather" not in program


def test_a_batch_that_devices_cannot_share_is_refused(small):
    network, *_ = small
    part = noise_batches(network, batch_size=12, axis_name="devices")
    with pytest.raises(InputError, match=r"unlearning\.batch_size: expected a multiple of 8 devices, found 12"):
        jax.pmap(lambda _: part(jax.random.key(1)), axis_name="devices")(jnp.arange(8))


def test_it_climbs_the_loss(small):
    network, variables, _ = small
    fixed = noise_batches(network, batch_size=32)(jax.random.key(2))
    config = UnlearningConfig(steps=10, learning_rate=1e-2)
    _, info = jax.jit(lambda v: unlearn(network, v, lambda key: fixed, key=jax.random.key(0), config=config))(variables)
    assert info.loss.shape == (10,)
    assert np.all(np.diff(info.loss) > 0)


def test_one_step_is_the_gradient_and_the_second_has_momentum(small):
    network, variables, _ = small
    batch = noise_batches(network, batch_size=8)(jax.random.key(3))

    @jax.jit
    def gradient(variables):
        params, state = split(variables)

        def loss(params):
            logits, new = network.train({"params": params, **state}, batch.images)
            return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), batch.labels[:, None], 1)), new

        grads, new = jax.grad(loss, has_aux=True)(params)
        return grads, new

    rate, momentum = 1e-2, 0.9
    first, state = gradient(variables)
    params = jax.tree.map(lambda p, g: p + rate * g, variables["params"], first)
    second, state = gradient({"params": params, **state})
    params = jax.tree.map(lambda p, g, h: p + rate * (momentum * g + h), params, first, second)
    config = UnlearningConfig(steps=2, learning_rate=rate, momentum=momentum)
    unlearned, _ = unlearn(network, variables, lambda key: batch, key=jax.random.key(0), config=config)
    close(unlearned, {"params": params, **state})


def test_jit_and_a_users_pmap_agree_with_neither(small, synchronised):
    network, variables, _ = small
    config = UnlearningConfig(steps=3, batch_size=16, learning_rate=1e-3)
    key = jax.random.key(4)
    plain, info = random_unlearning(network, variables, key=key, config=config)
    jitted, _ = jax.jit(lambda v: random_unlearning(network, v, key=key, config=config))(variables)
    mapped, mapped_info = jax.pmap(
        lambda _, v: random_unlearning(synchronised, v, key=key, config=config, axis_name="devices"),
        axis_name="devices",
        in_axes=(0, None),
    )(jnp.arange(4), variables)
    close(jitted, plain)
    close(jax.tree.map(lambda x: x[0], mapped), plain)
    close(jax.tree.map(lambda x: x[3], mapped), plain)
    close(mapped_info.loss[3], info.loss)


def test_other_key_other_noise(small):
    network, variables, _ = small
    config = UnlearningConfig(steps=1, batch_size=8)
    jitted = jax.jit(lambda key: random_unlearning(network, variables, key=key, config=config)[1].loss)
    losses = [jitted(jax.random.key(seed)) for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_progress_is_called_once_a_step(small):
    network, variables, _ = small
    batch = Batch(jnp.zeros((2, 8, 8, 1)), jnp.zeros(2, jnp.int32))
    calls = []
    unlearn(network, variables, lambda key: batch, key=jax.random.key(0), config=UnlearningConfig(steps=4),
            on_step=lambda: calls.append(1))  # fmt: skip
    jax.effects_barrier()
    assert len(calls) == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "unlearning.steps: expected a whole number of at least 1, found 0"),
        ({"batch_size": -1}, "unlearning.batch_size: expected a whole number of at least 1, found -1"),
        ({"learning_rate": float("nan")}, "unlearning.learning_rate: expected a number above 0, found nan"),
        ({"momentum": 1.0}, r"unlearning.momentum: expected a number in \[0, 1\), found 1.0"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(InputError, match=message):
        UnlearningConfig(**settings)
