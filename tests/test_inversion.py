"""Trigger inversion: aims and their promises, a planted patch, success rates, devices, and the call of one line."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import otbr_jax
from otbr_jax import Batch, InputError, Network, Penalised, Smallest, Within
from otbr_jax.inversion import Schedule, descend, invert_from, invert_triggers, success_rate
from otbr_jax.inversion.starts import random_starts
from otbr_jax.triggers import FAMILIES, PENALISED
from otbr_jax.triggers.patch import project

SHAPE = (8, 8, 1)
PATCH = FAMILIES["patch"]


def bright(variables, images):
    """Whether the left or the right half is brighter, but 2 if the corner is white: its patch is one pixel of 64."""
    left, right = images[:, :, :4].mean((1, 2, 3)), images[:, :, 4:].mean((1, 2, 3))
    return variables["params"] * jnp.stack([40 * left, 40 * right, 40 * images[:, 7, 7, 0] ** 6], axis=1)


NETWORK, VARIABLES = Network(bright, SHAPE, 3), {"params": jnp.ones(())}


@pytest.fixture(scope="module")
def images():
    made = 0.8 * jax.random.uniform(jax.random.key(0), (32, *SHAPE))
    made = made.at[:16, :, :4].multiply(0.5).at[16:, :, 4:].multiply(0.5)
    return Batch(made, jnp.argmax(bright(VARIABLES, made), axis=-1))


def test_a_descent_by_hand():
    """x^2 from 4 at rate 1/4 halves; what `follow` and `project` see is what they are promised."""
    seen = []
    descent, kept = descend(
        lambda x, batch, state: (x**2, (x, batch, state)),
        jnp.float32(4),
        optimizer=optax.sgd(0.25),
        steps=3,
        batches=lambda number: 10 * number,
        state=jnp.float32(0),
        update=lambda state, x, aux, number: (state + x, (aux, number)),
        project=lambda x: jnp.maximum(x, 0.75),
        has_aux=True,
        first=1,
        on_step=lambda: seen.append(1),
    )
    (points, batches, states), numbers = kept
    assert points.tolist() == [4, 2, 1]
    assert numbers.tolist() == [1, 2, 3]
    assert batches.tolist() == [10, 20, 30]
    assert states.tolist() == [0, 4, 6]
    assert (float(descent.point), float(descent.state), len(seen)) == (0.75, 7, 3)
    # Where a descent stands is enough to go on.
    rest, _ = descend(lambda x, *_: x**2, descent._replace(state=None), optimizer=optax.sgd(0.25), steps=2)
    assert float(rest.point) == 0.1875


def test_success_rates_by_hand():
    images = Batch(jnp.arange(5.0)[:, None, None, None] / 10, jnp.array([0, 0, 0, 1, 1]))

    def apply(variables, images):
        return jnp.stack([0 * images, images - 0.45], axis=1)[..., 0, 0, 0]

    rate = partial(success_rate, Network(apply, (1, 1, 1), 2), {}, images)
    add = FAMILIES["additive"].trigger
    some, none = jnp.ones((1, 1, 1)), -jnp.ones((1, 1, 1))
    assert rate(add(some, 0.26), 1) == pytest.approx(1 / 3)  # of 0, 0.1 and 0.2, the last is turned
    assert rate(add(some, 0.5), 1) == 1
    assert rate(add(none, 0.5), 1) == 0
    assert rate(add(none, 0.5), 0) == 1
    both = add(jnp.stack([some, none]), jnp.array([0.26, 0.5]))
    np.testing.assert_allclose(rate(both, jnp.array([1, 0])), [1 / 3, 1])
    assert rate(lambda images: images + 1, 1) == 1  # any function of images is a trigger
    assert success_rate(rate.args[0], {}, images._replace(labels=jnp.ones(5, int)), add(some, 0.5), 1) == 0


@pytest.mark.parametrize("name", FAMILIES)
def test_a_fixed_size_is_never_exceeded(name, images):
    """What a trigger changes is what its family promises of the budget; some of it is used."""
    family, size = FAMILIES[name], FAMILIES[name].bounds[0] * 4

    @jax.jit
    def invert_fixed(key):
        return invert_triggers(
            NETWORK, VARIABLES, images, family, 1, aim=Within(size), steps=6, triggers=2, starts=4, key=key
        )[0]

    triggers = invert_fixed(jax.random.key(1))
    np.testing.assert_allclose(triggers.size, size, rtol=1e-6)
    change = jax.vmap(lambda own: family.apply(images.images, own, size) - images.images)(triggers.parameters)
    assert jnp.max(jnp.abs(change)) > 0
    if name == "patch":
        assert jnp.all(jnp.mean(project(jax.tree.map(lambda leaf: leaf[0], triggers.parameters), size).mask) <= size)
        assert jnp.mean(jnp.any(change[0] != 0, axis=(0, 3))) < 0.5
    elif name != "warp":
        assert jnp.max(jnp.sqrt(jnp.mean(change**2, axis=(2, 3, 4)))) <= 1.001 * size


def test_the_smallest_finds_a_planted_patch(images):
    """At about one pixel, the white corner; the other classes take several times as much."""
    inverted = {target: otbr_jax.invert(NETWORK, VARIABLES, images.images, "patch", target) for target in (0, 2)}
    assert inverted[2].success > 0.75
    assert inverted[2].size < 2.5 / 64
    assert inverted[2].size < 0.5 * inverted[0].size
    patch = project(inverted[2].parameters, inverted[2].size)
    assert jnp.unravel_index(jnp.argmax(patch.mask), SHAPE)[:2] == (7, 7)
    assert patch.pattern[7, 7, 0] > 0.9
    by_hand = jnp.argmax(bright(VARIABLES, inverted[2].apply(images.images)), axis=-1) == 2
    assert float(inverted[2].success) == pytest.approx(float(jnp.mean(by_hand[images.labels != 2])))


def test_a_larger_weight_finds_a_smaller_trigger(images):
    family = PENALISED["patch"](0.1)
    start = family.init(jax.random.key(0), SHAPE)
    sizes = [
        invert_from(start, NETWORK, VARIABLES, images, family, 1, aim=Penalised(weight), steps=60)[0].size
        for weight in (1.0, 100.0)
    ]
    assert sizes[1] < 0.5 * sizes[0]


def test_a_schedule_keeps_the_cheapest_that_worked(images):
    """Several at once are each what they are alone; what is kept worked in a step."""
    family, aim = PENALISED["patch"](0.3), Penalised(1.0, Schedule(success=0.9, patience=2))
    starts = random_starts(family, SHAPE, count=2, key=jax.random.key(0))
    both, _ = invert_from(starts, NETWORK, VARIABLES, images, family, jnp.array([2, 1]), aim=aim, steps=60)
    first = jax.tree.map(lambda leaf: leaf[0], (starts, both))
    alone, _ = invert_from(first[0], NETWORK, VARIABLES, images, family, 2, aim=aim, steps=60)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), alone, first[1])
    assert success_rate(NETWORK, VARIABLES, images, family.trigger(alone.parameters), 2) >= 0.9


@pytest.mark.parametrize("aim", [Smallest(settle=1), Within(0.1)])
def test_devices_find_what_one_finds(aim, images):
    start = random_starts(PATCH, SHAPE, count=2, key=jax.random.key(2))

    def invert_shared(axis_name=None):
        return invert_from(
            *(start, NETWORK, VARIABLES, images, PATCH, jnp.array([1, 2])),
            aim=aim,
            steps=4,
            batch_size=8,
            axis_name=axis_name,
        )[0]

    mesh = jax.make_mesh((4,), ("devices",), devices=jax.devices()[:4])
    shared = jax.jit(
        jax.shard_map(lambda: invert_shared("devices"), mesh=mesh, in_specs=(), out_specs=P(), check_vma=False)
    )()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), shared, jax.jit(invert_shared)())
    with pytest.raises(InputError, match=r"^batch_size: expected a multiple of 4 devices, found 6"):
        jax.shard_map(
            lambda: invert_from(
                *(start, NETWORK, VARIABLES, images, PATCH, jnp.array([1, 2])),
                **{"aim": aim, "steps": 1, "batch_size": 6, "axis_name": "devices"},
            )[0],
            mesh=mesh,
            in_specs=(),
            out_specs=P(),
        )()


def test_one_call_takes_any_family_aim_and_kind_of_image(images, usual_compiler):
    few = {"steps": 2, "triggers": 2, "starts": 2}
    pixels = np.asarray(images.images * 255).astype(np.uint8)
    one = otbr_jax.invert(NETWORK, VARIABLES, pixels, "additive", 1, aim=Within(0.05), **few)
    assert one.size == pytest.approx(0.05)
    assert one.apply(pixels).shape == images.images.shape
    other = otbr_jax.invert(NETWORK, VARIABLES, pixels / np.float32(255), "additive", 1, aim=Within(0.05), **few)
    np.testing.assert_array_equal(other.parameters, one.parameters)
    own = FAMILIES["wave"]._replace(name="own", bounds=(0.01, 0.2), start=0.1)
    assert otbr_jax.invert(NETWORK, VARIABLES, pixels, own, 1, **few).family is own
    priced = otbr_jax.invert(NETWORK, VARIABLES, pixels, "perturbation", 1, aim=Penalised(3.0), **few)
    assert priced.size == pytest.approx(float(jnp.sqrt(jnp.mean(priced.parameters**2))))
    again = jax.tree.map(lambda leaf: leaf, priced)
    np.testing.assert_allclose(jax.jit(lambda t: t.apply(pixels))(again), priced.apply(pixels), atol=1e-6)


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("family: expected one of ['patch', 'additive', 'low_frequency', 'wave', 'warp', 'generator'] or a "
         "TriggerFamily, found 'patches'", {"family": "patches"}),
        ("family: expected one of ['patch', 'perturbation'] with Penalised or a TriggerFamily, found 'warp'",
         {"family": "warp", "aim": Penalised(1.0)}),
        ("aim: expected Smallest(), Within(size) or Penalised(weight), found 0.1", {"aim": 0.1}),
        ("aim: expected Penalised(weight) for 'patch', which has no budget, found Within(size=0.1)",
         {"family": PENALISED["patch"](0.1), "aim": Within(0.1)}),
        ("aim: expected Smallest() or Within(size) for 'patch', found Penalised(weight=1.0, schedule=None)",
         {"family": PATCH, "aim": Penalised(1.0)}),
        ("aim.size: expected a finite size above 0, found 0", {"aim": Within(0)}),
        ("target: expected a class, 0 to 2, found 3", {"target": 3}),
        ("steps: expected at least 1, found 0", {"steps": 0}),
        ("triggers: expected at least 1, found 0", {"triggers": 0}),
        ("batch_size: expected at least 1, found 0", {"batch_size": 0}),
        ("images: expected shape [n, 8, 8, 1], found [8, 8, 1]", {"images": np.zeros(SHAPE)}),
        ("images: expected shape [n, 8, 8, 1], found [0, 8, 8, 1]", {"images": np.zeros((0, *SHAPE))}),
        ("images: expected uint8 in 0..255 or numbers in [0, 1], found float32 in 0..255",
         {"images": np.pad(np.full((1, 1, 1, 1), 255.0), ((0, 0), (0, 7), (0, 7), (0, 0)))}),
        ("images: expected some that the network does not take for class 2, found none",
         {"images": np.eye(8)[None, ..., None] * np.eye(8)[7:, :, None], "target": 2, "steps": 1, "triggers": 1}),
        ("network: expected otbr_jax.Network, found function", {"network": bright}),
        ("variables: expected finite weights, found 1 NaN or infinite values in params",
         {"variables": {"params": np.float32(np.nan)}}),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_said_in_a_line(message, change, images):
    given = {"network": NETWORK, "variables": VARIABLES, "images": images.images} | change
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        otbr_jax.invert(**given)
