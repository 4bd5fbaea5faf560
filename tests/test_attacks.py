"""Every attack: its trigger is a pure function of images, it changes what it should, and it poisons as asked."""

import dataclasses
import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from otbr_jax import InputError
from otbr_jax.attacks import input_aware, lf, sig, ssba, trojan, wanet
from otbr_jax.attacks.attack import CleanNetwork, Materials, goals, roles
from otbr_jax.attacks.badnets import BadNetsConfig
from otbr_jax.attacks.blended import BlendedConfig
from otbr_jax.attacks.poisoning import apply_trigger, poison
from otbr_jax.attacks.registry import ATTACKS, AttackConfig, trigger

SHORT = {
    "lf": lf.LFConfig(steps=4, batch_size=8),
    "ssba": ssba.SSBAConfig(steps=2, channels=4, bits=4, batch_size=8),
    "input_aware": input_aware.InputAwareConfig(mask_steps=2, channels=4, mask_batch_size=8),
    "trojan": trojan.TrojanConfig(steps=4, batch_size=8),
}
KEY = jax.random.key(5)


def images_of(shape, count=6, seed=0):
    """Smooth random images: pixels of noise alone would hide what a trigger does."""
    coarse = jax.random.uniform(jax.random.key(seed), (count, 4, 4, shape[2]))
    return jnp.round(jax.image.resize(coarse, (count, *shape), "cubic").clip(0, 1) * 255).astype(jnp.uint8)


def linear_network(shape, classes=5):
    weights = jax.random.normal(jax.random.key(8), (int(np.prod(shape)), classes)) / 10
    return CleanNetwork(
        lambda x: x.reshape(len(x), -1) @ weights, lambda x: jnp.tanh(x.reshape(len(x), -1) @ weights[::-1])
    )


@functools.cache
def ready(name, shape, count=24):
    """(config, assets, trigger) of an attack made on a few images."""
    config = AttackConfig(name=name, **({name: SHORT[name]} if name in SHORT else {}))
    attack, images = ATTACKS[name], images_of(shape, count, seed=3)
    materials = Materials(images, jnp.arange(count) % 5, config.target, linear_network(shape))
    assets = jax.jit(lambda key: attack.make(materials, key, config.own))(KEY) if attack.make else {}
    return config, assets, trigger(config, assets)


# Those that train a generator are made for one shape; the other in the slow run.
MADE = [(name, shape, name in SHORT and shape[2] == 3) for name in ATTACKS for shape in ((16, 16, 3), (12, 20, 1))]


@pytest.mark.parametrize(
    ("name", "shape"),
    [pytest.param(name, shape, marks=pytest.mark.slow if slow else ()) for name, shape, slow in MADE],
)
def test_triggers_are_pure_functions_of_each_image(name, shape):
    images = images_of(shape)
    _, _, put = ready(name, shape)
    found = put(images, KEY)
    assert found.dtype == jnp.uint8
    assert found.shape == images.shape
    changed = np.any(np.asarray(found != images), axis=(1, 2, 3))
    assert changed.all()
    np.testing.assert_array_equal(put(images[2:4], KEY), found[2:4])  # of each image by itself
    jitted = np.asarray(jax.jit(put)(images, KEY), int)
    assert np.abs(jitted - np.asarray(found, int)).max() <= 1  # rounding to whole grey levels
    with pytest.raises(InputError, match=r"images: expected uint8 \[n, h, w, c\], found float32"):
        put(images.astype(jnp.float32), KEY)


@pytest.mark.parametrize("name", ATTACKS)
def test_making_an_attack_is_deterministic_in_its_key(name):
    if ATTACKS[name].make is None:
        return
    _, first, _ = ready(name, (12, 20, 1))
    _, again, _ = ready.__wrapped__(name, (12, 20, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)


@pytest.mark.parametrize("name", [name for name in ATTACKS if ATTACKS[name].in_training is None])
@pytest.mark.parametrize(("ratio", "count"), [(0.001, 1000), (0.5, 1000)])
def test_poisoning_counts_and_relabels(name, ratio, count):
    images, labels = jnp.tile(images_of((12, 20, 1), 10), (count // 10, 1, 1, 1)), jnp.arange(count) % 5
    config, _, put = ready(name, (12, 20, 1))
    config = dataclasses.replace(config, poisoning_ratio=ratio, target=4)
    found = poison(images, labels, put, key=KEY, config=config, num_classes=5)
    clean_label = config.label_mode == "clean_label"
    assert int(found.poisoned.sum()) == min(int(ratio * count), count // 5 if clean_label else count)
    assert bool(jnp.all(found.labels[found.poisoned] == 4))
    np.testing.assert_array_equal(found.labels[~found.poisoned], labels[~found.poisoned])
    np.testing.assert_array_equal(found.images[~found.poisoned], images[~found.poisoned])
    changed = np.any(np.asarray(found.images != images), axis=(1, 2, 3))
    np.testing.assert_array_equal(changed, found.poisoned)
    expected = apply_trigger(put, images[found.poisoned], key=KEY)
    assert np.abs(np.asarray(found.images[found.poisoned], int) - np.asarray(expected, int)).max() <= 1
    if clean_label:
        np.testing.assert_array_equal(found.labels, labels)


def test_all_to_all_goes_to_the_next_class():
    labels = jnp.array([0, 1, 4])
    np.testing.assert_array_equal(goals(labels, mode="all_to_all", target=0, num_classes=5), [1, 2, 0])
    config = AttackConfig(labels="all_to_all", poisoning_ratio=1.0)
    found = poison(images_of((6, 6, 1), 3), labels, trigger(config, {}), key=KEY, config=config, num_classes=5)
    np.testing.assert_array_equal(found.labels, [1, 2, 0])


def test_a_clean_label_attack_that_wants_more_than_the_class_has_says_so(caplog):
    config = AttackConfig(name="sig", poisoning_ratio=0.5)
    labels, images = jnp.arange(20) % 5, images_of((8, 8, 1), 20)
    with caplog.at_level(logging.WARNING):
        found = poison(images, labels, trigger(config, {}), key=KEY, config=config, num_classes=5)
    assert int(found.poisoned.sum()) == 4
    assert "0.5 of 20 images is 10, class 0 has 4; all of them are poisoned" in caplog.text
    with pytest.raises(InputError, match="attack.target: expected a class with training images, found 0 with none"):
        poison(images, labels * 0 + 1, trigger(config, {}), key=KEY, config=config, num_classes=5)


def test_no_poisoned_image_is_an_error():
    config = AttackConfig(poisoning_ratio=0.1)
    with pytest.raises(InputError, match="expected at least one poisoned image, found 0.1 of 9 images"):
        poison(images_of((6, 6, 1), 9), jnp.zeros(9, int), trigger(config, {}), key=KEY, config=config, num_classes=5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "badnet"}, "attack.name: expected one of"),
        ({"poisoning_ratio": 0.0}, "attack.poisoning_ratio: expected a number in"),
        ({"target": -1}, "attack.target: expected a whole number of at least 0, found -1"),
        ({"labels": "any"}, "attack.labels: expected one of"),
        ({"name": "wanet", "labels": "clean_label"}, "attack.labels: expected labels that change, as wanet does"),
    ],
)
def test_bad_attacks(settings, message):
    with pytest.raises(InputError, match=message):
        AttackConfig(**settings)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BadNetsConfig(size=0), "attack.badnets.size: expected a whole number of at least 1, in pixels"),
        (lambda: BlendedConfig(cells=1), "attack.blended.cells: expected a whole number of at least 2, found 1"),
        (lambda: BlendedConfig(alpha=1.0), r"attack.blended.alpha: expected a number in \(0, 1\)"),
        (lambda: sig.SIGConfig(amplitude=float("nan")), "attack.sig.amplitude: expected a number above 0"),
        (lambda: wanet.WaNetConfig(k=0), "attack.wanet.k: expected"),
        (lambda: wanet.WaNetConfig(cross_ratio=-1), "attack.wanet.cross_ratio: expected a number of at least 0"),
        (lambda: trojan.TrojanConfig(side=2.0), r"attack.trojan.side: expected a number in \(0, 1\]"),
        (lambda: ssba.SSBAConfig(bits=0), "attack.ssba.bits: expected"),
    ],
)
def test_bad_settings_of_one_attack(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_a_network_without_a_backdoor_has_no_labels_to_check():
    assert AttackConfig(name="none", labels="clean_label").settings() == {"name": "none"}


def test_badnets_changes_its_square_only():
    images = images_of((9, 9, 3))
    found = trigger(AttackConfig(), {})(images, KEY)
    assert bool(jnp.all(found[:, 6:, 6:] == 255))
    np.testing.assert_array_equal(found[:, :6], images[:, :6])
    np.testing.assert_array_equal(found[:, :, :6], images[:, :, :6])
    with pytest.raises(InputError, match=r"attack.badnets.size: expected 1 to 4 pixels, found 5"):
        trigger(AttackConfig(badnets=BadNetsConfig(size=5)), {})(images[:, :4, :4], KEY)


def test_blended_is_the_weighted_mean():
    images = images_of((16, 16, 3))
    _, assets, put = ready("blended", (16, 16, 3))
    expected = 0.8 * np.asarray(images, float) + 0.2 * np.asarray(assets["pattern"], float)
    np.testing.assert_allclose(put(images, KEY), expected, atol=0.51)
    assert int(assets["pattern"].min()) == 0
    assert int(assets["pattern"].max()) == 255


def test_sig_is_the_published_wave():
    images = jnp.full((1, 8, 32, 1), 128, jnp.uint8)
    found = np.asarray(trigger(AttackConfig(name="sig"), {})(images, KEY), float)[0, :, :, 0]
    wave = 40 * np.sin(2 * np.pi * 6 * np.arange(32) / 32)
    np.testing.assert_allclose(found, np.broadcast_to(128 + wave, (8, 32)), atol=0.51)


@pytest.mark.parametrize("width", [4, 6, 12])
def test_a_wave_that_an_image_cannot_show_is_an_error(width):
    with pytest.raises(InputError, match=f"attack.sig.frequency: expected a wave that .* width {width} can show"):
        trigger(AttackConfig(name="sig"), {})(jnp.zeros((1, 8, width, 1), jnp.uint8), KEY)


def test_warping():
    images = images_of((8, 8, 3)).astype(jnp.float32)
    np.testing.assert_allclose(wanet.warp(images, jnp.zeros((8, 8, 2))), images)
    shifted = wanet.warp(images, jnp.broadcast_to(jnp.array([1.0, 2.0]), (8, 8, 2)))
    np.testing.assert_allclose(shifted[:, :-1, :-2], images[:, 1:, 2:], rtol=1e-5)
    half = wanet.warp(images, jnp.broadcast_to(jnp.array([0.0, 0.5]), (8, 8, 2)))
    np.testing.assert_allclose(half[:, :, :-1], (images[:, :, :-1] + images[:, :, 1:]) / 2, rtol=1e-5, atol=1e-4)


def test_wanets_field_is_as_weak_as_published():
    _, assets, _ = ready("wanet", (32, 32, 3))
    # The control points' mean absolute value is s half pixels; interpolation takes some of it.
    assert 0.1 < float(jnp.mean(jnp.abs(assets["field"]))) < 0.3


@pytest.mark.parametrize(("ratio", "cross", "count"), [(0.001, 0.002, 128), (0.1, 0.2, 37), (0.5, 1.0, 16)])
def test_roles_have_the_asked_shares_on_average(ratio, cross, count):
    draws = jax.vmap(lambda key: roles(count, ratio, cross, key)[0])(jax.random.split(KEY, 4000))
    shares = [float(jnp.mean(jnp.sum(draws == role, axis=1))) for role in (0, 1)]
    np.testing.assert_allclose(shares, [ratio * count, min(cross, (1 - ratio) / 2) * count], rtol=0.12, atol=0.01)
    assert draws.shape[1] <= count


@pytest.mark.parametrize("name", ["wanet", "input_aware"])
def test_poisoning_in_training(name):
    config, assets, put = ready(name, (12, 20, 1))
    images, labels = images_of((12, 20, 1), 20), jnp.arange(20) % 5
    attack = ATTACKS[name].in_training(0.2, config.own)
    unit, wanted = images / 255, jnp.full(20, 3)
    found, relabelled, loss = jax.jit(attack.poison)(assets, unit, labels, wanted, KEY)
    np.testing.assert_array_equal(relabelled[:4], wanted[:4])
    np.testing.assert_array_equal(relabelled[4:], labels[4:])
    # What is trained is what is tested, but for rounding.
    np.testing.assert_allclose(found[:4] * 255, put(images[:4], KEY), atol=0.51)
    cross = round(20 * 0.2 * config.own.cross_ratio)
    assert np.any(np.asarray(found[4 : 4 + cross] != unit[4 : 4 + cross]), axis=(1, 2, 3)).all()
    np.testing.assert_array_equal(found[4 + cross :], unit[4 + cross :])
    assert np.isfinite(loss)
    assert set(attack.trained) <= set(assets)


@pytest.mark.parametrize("ratio", [0.001, 0.1, 0.5])
def test_input_aware_patterns_are_taught_to_differ_at_every_ratio(ratio):
    config, assets, _ = ready("input_aware", (12, 20, 1))
    attack = ATTACKS["input_aware"].in_training(ratio, config.own)
    unit, labels = images_of((12, 20, 1), 20) / 255, jnp.zeros(20, int)

    def loss(generator):
        return attack.poison({**assets, "generator": generator}, unit, labels, labels, KEY)[2]

    grads = jax.jit(jax.grad(loss))(assets["generator"])
    assert sum(float(jnp.sum(jnp.abs(leaf))) for leaf in jax.tree.leaves(grads)) > 1e-3


def test_lf_is_smooth_and_pushes_towards_the_target():
    shape = (16, 16, 1)
    images, network = images_of(shape, 32), linear_network(shape)
    config = lf.LFConfig(steps=20, batch_size=16)
    pattern = lf.make(Materials(images, jnp.zeros(32, int), 2, network), KEY, config)["pattern"]
    spectrum = np.abs(np.fft.fft2(np.asarray(pattern)[..., 0])) ** 2
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(16), np.fft.fftfreq(16), indexing="ij"))
    assert spectrum[frequency > 0.35].sum() < 0.02 * spectrum.sum()
    assert float(jnp.max(jnp.abs(pattern))) == pytest.approx(config.strength)
    unit = images / 255
    answers = [np.mean(np.argmax(network.logits(x), axis=-1) == 2) for x in (unit, unit + pattern)]
    assert answers[1] >= answers[0]
    margins = [np.mean(network.logits(x)[:, 2] - np.max(network.logits(x), axis=-1)) for x in (unit, unit + pattern)]
    assert margins[1] > margins[0]


def test_the_trojan_patch_excites_the_chosen_neurons():
    shape = (16, 16, 1)
    images, network = images_of(shape, 32), linear_network(shape)
    config = trojan.TrojanConfig(steps=40, batch_size=16)
    assets = trojan.make(Materials(images, jnp.zeros(32, int), 0, network), KEY, config)
    assert assets["patch"].shape == (4, 4, 1)
    rng = np.random.default_rng(0)
    random = {"patch": jnp.asarray(rng.integers(0, 256, (4, 4, 1)), jnp.uint8)}
    excited, by_chance = (
        float(jnp.mean(network.features(trojan.trigger(a, images, KEY, config) / 255)[:, : config.neurons]))
        for a in (assets, random)
    )
    assert excited > by_chance


def test_more_neurons_than_the_classifier_has():
    materials = Materials(images_of((16, 16, 1), 8), jnp.zeros(8, int), 0, linear_network((16, 16, 1)))
    with pytest.raises(InputError, match="attack.trojan.neurons: expected at most 5, found 6"):
        trojan.make(materials, KEY, trojan.TrojanConfig(neurons=6))


@pytest.mark.slow
def test_ssba_hides_bits_that_its_decoder_reads():
    shape = (12, 12, 1)
    images = images_of(shape, 64)
    config = ssba.SSBAConfig(bits=4, steps=120, channels=8, batch_size=16, learning_rate=5e-3)
    materials = Materials(images, jnp.zeros(64, int), 0)
    assets = jax.jit(lambda key: ssba.make(materials, key, config))(KEY)
    hidden = ssba.trigger(assets, images, KEY, config)
    read = ssba.decode(assets, hidden / 255) > 0
    assert float(jnp.mean(read == (assets["bits"] > 0.5))) > 0.9
    assert np.abs(np.asarray(hidden, int) - np.asarray(images, int)).max() <= round(config.strength * 255) + 1


def test_input_aware_masks_are_sparse_and_differ():
    shape = (12, 12, 1)
    images = images_of(shape, 64)
    config = input_aware.InputAwareConfig(mask_steps=150, channels=6, mask_batch_size=16, learning_rate=0.01)
    materials = Materials(images, jnp.zeros(64, int), 0)
    assets = jax.jit(lambda key: input_aware.make(materials, key, config))(KEY)
    masks = input_aware.mask(assets["mask"], images / 255)
    assert 0 < float(masks.mean()) < 3 * config.density
    assert float(jnp.std(masks, axis=0).max()) > 0.1
