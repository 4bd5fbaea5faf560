"""Images made from a network alone, and triggers inverted on them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from otbr_jax import Batch, InputError, Network
from otbr_jax.contrib.images import SyntheticConfig, statistics_distance, synthesize, total_variation
from otbr_jax.inversion import PenalisedConfig, invert_classes, success_rate
from otbr_jax.inversion.penalised import family_of, invert_penalised
from otbr_jax.steps.objective import training_state
from otbr_jax.triggers import PENALISED
from otbr_jax.triggers.additive import perturb
from otbr_jax.triggers.patch import Patch, replace
from otbr_jax.types import split

# An untrained network's answers say little, so that statistics weigh less than by default.
CONFIG = SyntheticConfig(images=12, steps=25, learning_rate=0.1, statistics=1.0, variation=1.0)


@pytest.fixture(scope="module")
def seen(small):
    """A network whose running statistics are those of a batch, and the batch."""
    network, variables, _ = small
    images = jax.random.uniform(jax.random.key(3), (16, 8, 8, 1))
    params, state = split(variables)
    moved, batch = training_state(network, params), Batch(images, jnp.zeros(16, jnp.int32))
    state = jax.jit(lambda state: jax.lax.fori_loop(0, 150, lambda _, s: moved(params, s, batch), state))(state)
    return network, {"params": params, **state}, images


def test_statistics_are_near_where_the_network_has_seen_the_like(seen):
    network, variables, images = seen
    distance = jax.jit(lambda images: statistics_distance(network, variables, images))
    near = distance(images)
    assert float(near) < 1e-6
    assert distance(images[::-1]) == pytest.approx(float(near), abs=1e-6)
    assert float(distance(1 - 0.2 * images)) > 1e3 * float(near)
    stateless = Network(lambda v, x: x.reshape(len(x), -1) @ v["params"], image_shape=(2, 2, 1), num_classes=3)
    assert statistics_distance(stateless, {"params": jnp.ones((4, 3))}, jnp.ones((2, 2, 2, 1))) == 0


def test_total_variation():
    assert total_variation(jnp.full((2, 4, 4, 3), 0.7)) == 0
    board = (jnp.indices((4, 4)).sum(axis=0) % 2).astype(jnp.float32)[None, ..., None]
    assert total_variation(board) == 1
    assert total_variation(jnp.tile(jnp.arange(4.0)[None, :, None, None], (1, 1, 4, 1))) == 0.5


def test_synthetic_images_are_like_what_the_network_has_seen(seen):
    network, variables, _ = seen
    make = jax.jit(lambda variables, key: synthesize(network, variables, key=key, config=CONFIG))
    batch, info = make(variables, jax.random.key(0))
    assert batch.images.shape == (12, 8, 8, 1)
    assert 0 <= float(batch.images.min()) <= float(batch.images.max()) <= 1
    assert batch.labels.tolist() == [*range(10), 0, 1]
    assert info.statistics[0] == pytest.approx(1)
    assert float(info.statistics[-1]) < 0.5
    assert float(info.loss[-1]) < float(info.loss[0])
    again, _ = make(variables, jax.random.key(0))
    np.testing.assert_array_equal(again.images, batch.images)
    other, _ = make(variables, jax.random.key(1))
    assert float(jnp.max(jnp.abs(other.images - batch.images))) > 0.1


def backdoored():
    """Answers by the brightness of the left or right half, but 2 if the pixel in the corner is white."""

    def apply(variables, images):
        left, right = images[:, :, :4].mean((1, 2, 3)), images[:, :, 4:].mean((1, 2, 3))
        corner = 5 * images[:, 7, 7, 0] ** 6
        return variables["params"] * jnp.stack([40 * left, 40 * right, 8 * corner], axis=1)

    network = Network(apply, image_shape=(8, 8, 1), num_classes=3)
    images = 0.8 * jax.random.uniform(jax.random.key(0), (30, 8, 8, 1))
    images = images.at[:15, :, :4].multiply(0.5).at[15:, :, 4:].multiply(0.5)
    variables = {"params": jnp.ones(())}
    return network, variables, Batch(images, jnp.argmax(apply(variables, images), axis=-1))


SEARCHES = {
    "patch": PenalisedConfig(steps=200),
    "perturbation": PenalisedConfig(steps=200, learning_rate=0.03, size=30.0),
}


def test_the_trigger_of_a_backdoor_is_found():
    network, variables, images = backdoored()
    made = jax.jit(lambda v, key: invert_classes(network, v, images, key=key, configs=SEARCHES))
    inverted = made(variables, jax.random.key(1))
    assert [*inverted] == ["patch", "perturbation"]
    patch, perturbation = inverted.values()
    assert patch.parameters.mask.shape == (3, 8, 8, 1)
    assert patch.success[2] == 1
    assert int(jnp.argmin(patch.size)) == 2
    assert float(patch.size[2]) < 0.5 * float(jnp.min(patch.size[:2]))
    assert int(jnp.argmin(perturbation.size)) == 2
    assert np.unravel_index(int(jnp.argmax(patch.parameters.mask[2])), (8, 8)) == (7, 7)
    # Sizes and successes are those of the parameters.
    for (name, each), size in zip(inverted.items(), (jnp.mean, lambda x: jnp.sqrt(jnp.mean(x**2))), strict=True):
        own = jax.tree.map(lambda leaf: leaf[2], each.parameters)
        np.testing.assert_allclose(size(own.mask if name == "patch" else own), each.size[2], rtol=1e-6)
        assert success_rate(network, variables, images, family_of(name).trigger(own), 2) == each.success[2]


@pytest.mark.parametrize("name", PENALISED)
def test_a_search_is_the_same_with_and_without_jit_and_for_a_traced_class(name):
    network, variables, images = backdoored()
    settings = {"family": name, "key": jax.random.key(1), "config": PenalisedConfig(steps=3)}
    plain = invert_penalised(network, variables, images, 2, **settings)
    traced = jax.jit(lambda v, target: invert_penalised(network, v, images, target, **settings))(variables, 2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), plain, traced)


def test_patches_and_perturbations():
    network, variables, images = backdoored()
    nothing, pattern = jnp.zeros((8, 8, 1)), jnp.ones((8, 8, 1))
    np.testing.assert_array_equal(replace(images.images, Patch(nothing, pattern)), images.images)
    np.testing.assert_array_equal(replace(images.images, Patch(nothing + 1, pattern)), jnp.ones_like(images.images))
    np.testing.assert_array_equal(perturb(images.images, nothing), images.images)
    np.testing.assert_array_equal(perturb(images.images, 2 * pattern), jnp.ones_like(images.images))
    corner = nothing.at[7, 7].set(1.0)
    # Images that are of the class already do not count.
    own = images._replace(labels=jnp.full(30, 2))
    for name, no, white in (
        ("patch", Patch(nothing, pattern), Patch(corner, pattern)),
        ("perturbation", nothing, corner),
    ):
        nothing_on, white_on = (family_of(name).trigger(parameters) for parameters in (no, white))
        assert success_rate(network, variables, images, nothing_on, 2) == 0
        assert success_rate(network, variables, images, white_on, 2) == 1
        assert success_rate(network, variables, own, white_on, 2) == 0


@pytest.mark.parametrize(
    ("message", "make"),
    [
        ("synthetic.images: expected a whole number of at least 1, found 0", lambda: SyntheticConfig(images=0)),
        (
            "synthetic.learning_rate: expected a number above 0, found nan",
            lambda: SyntheticConfig(learning_rate=np.nan),
        ),
        ("synthetic.statistics: expected a number of at least 0, found -1", lambda: SyntheticConfig(statistics=-1)),
        ("penalised.steps: expected a whole number of at least 1, found 0", lambda: PenalisedConfig(steps=0)),
        ("penalised.size: expected a number above 0, found 0", lambda: PenalisedConfig(size=0)),
    ],
)
def test_bad_settings(message, make):
    with pytest.raises(InputError, match=message):
        make()
