"""Every attack: its trigger is a pure function of images, it changes what it should, and it poisons as asked."""

import dataclasses
import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.fft

from otbr_jax import InputError
from otbr_jax.attacks import (
    adaptive,
    bpp,
    ctrl,
    ftrojan,
    input_aware,
    label_consistent,
    lf,
    lira,
    sig,
    spectral,
    ssba,
    trojan,
    wanet,
)
from otbr_jax.attacks.attack import CleanNetwork, Materials, goals, roles
from otbr_jax.attacks.badnets import BadNetsConfig
from otbr_jax.attacks.blended import BlendedConfig
from otbr_jax.attacks.poisoning import apply_trigger, poison
from otbr_jax.attacks.registry import ATTACKS, AttackConfig, poisoner, trigger

SHORT = {
    "lf": lf.LFConfig(steps=4, batch_size=8),
    "ssba": ssba.SSBAConfig(steps=2, channels=4, bits=4, batch_size=8),
    "input_aware": input_aware.InputAwareConfig(mask_steps=2, channels=4, mask_batch_size=8),
    "trojan": trojan.TrojanConfig(steps=4, batch_size=8),
    "lira": lira.LIRAConfig(channels=4),
    "adaptive_pictures": adaptive.ImagesAwareConfig(pictures=20),
}
KEY = jax.random.key(5)


def images_of(shape, count=6, seed=0):
    """Smooth random images: pixels of noise alone would hide what a trigger does."""
    return drawn(jax.random.key(seed), shape=(count, *shape))


@functools.partial(jax.jit, static_argnames="shape")
def drawn(key, *, shape):
    coarse = jax.random.uniform(key, (shape[0], 4, 4, shape[3]))
    return jnp.round(jax.image.resize(coarse, shape, "cubic").clip(0, 1) * 255).astype(jnp.uint8)


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
    materials = Materials(images, jnp.arange(count) % 5, config.target, linear_network(shape), classes=5)
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
    triggered = put(images, KEY)
    assert triggered.dtype == jnp.uint8
    assert triggered.shape == images.shape
    changed = np.any(np.asarray(triggered != images), axis=(1, 2, 3))
    assert changed.all()
    jitted = jax.jit(put)
    together = jitted(images, KEY)
    np.testing.assert_array_equal(jitted(images[2:4], KEY), together[2:4])  # of each image by itself
    assert np.abs(np.asarray(together, int) - np.asarray(triggered, int)).max() <= 1  # rounding to whole grey levels
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
    training_set = poison(images, labels, put, key=KEY, config=config, num_classes=5)
    clean_label = config.label_mode == "clean_label"
    assert int(training_set.poisoned.sum()) == min(int(ratio * count), count // 5 if clean_label else count)
    assert bool(jnp.all(training_set.labels[training_set.poisoned] == 4))
    np.testing.assert_array_equal(training_set.labels[~training_set.poisoned], labels[~training_set.poisoned])
    np.testing.assert_array_equal(training_set.images[~training_set.poisoned], images[~training_set.poisoned])
    changed = np.any(np.asarray(training_set.images != images), axis=(1, 2, 3))
    np.testing.assert_array_equal(changed, training_set.poisoned)
    expected = apply_trigger(put, images[training_set.poisoned], key=KEY)
    assert np.abs(np.asarray(training_set.images[training_set.poisoned], int) - np.asarray(expected, int)).max() <= 1
    if clean_label:
        np.testing.assert_array_equal(training_set.labels, labels)


def test_all_to_all_goes_to_the_next_class():
    labels = jnp.array([0, 1, 4])
    np.testing.assert_array_equal(goals(labels, mode="all_to_all", target=0, num_classes=5), [1, 2, 0])
    config = AttackConfig(labels="all_to_all", poisoning_ratio=1.0)
    training_set = poison(images_of((6, 6, 1), 3), labels, trigger(config, {}), key=KEY, config=config, num_classes=5)
    np.testing.assert_array_equal(training_set.labels, [1, 2, 0])


def test_a_clean_label_attack_that_wants_more_than_the_class_has_says_so(caplog):
    config = AttackConfig(name="sig", poisoning_ratio=0.5)
    labels, images = jnp.arange(20) % 5, images_of((8, 8, 1), 20)
    with caplog.at_level(logging.WARNING):
        training_set = poison(images, labels, trigger(config, {}), key=KEY, config=config, num_classes=5)
    assert int(training_set.poisoned.sum()) == 4
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
        ({"name": "lira", "labels": "clean_label"}, "attack.labels: expected labels that change, as lira does"),
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
        (lambda: bpp.BppConfig(levels=1), r"attack.bpp.levels: expected a whole number in \[2, 128\], found 1"),
        (lambda: lira.LIRAConfig(eps=0.0), r"attack.lira.eps: expected a number in \(0, 1\]"),
    ],
)
def test_bad_settings_of_one_attack(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_a_network_without_a_backdoor_has_no_labels_to_check():
    assert AttackConfig(name="none", labels="clean_label").settings() == {"name": "none"}


def test_badnets_changes_its_square_only():
    images = images_of((9, 9, 3))
    triggered = trigger(AttackConfig(), {})(images, KEY)
    assert bool(jnp.all(triggered[:, 6:, 6:] == 255))
    np.testing.assert_array_equal(triggered[:, :6], images[:, :6])
    np.testing.assert_array_equal(triggered[:, :, :6], images[:, :, :6])
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
    rows = np.asarray(trigger(AttackConfig(name="sig"), {})(images, KEY), float)[0, :, :, 0]
    wave = 40 * np.sin(2 * np.pi * 6 * np.arange(32) / 32)
    np.testing.assert_allclose(rows, np.broadcast_to(128 + wave, (8, 32)), atol=0.51)


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


@pytest.mark.parametrize("name", ["wanet", "input_aware", "bpp", "lira"])
def test_poisoning_in_training(name):
    config, assets, put = ready(name, (12, 20, 1))
    images, labels = images_of((12, 20, 1), 20), jnp.arange(20) % 5
    attack = ATTACKS[name].in_training(0.2, config.own)
    unit, target_labels = images / 255, jnp.full(20, 3)
    poisoned, relabelled, loss = jax.jit(attack.poison)(assets, unit, labels, target_labels, KEY)
    np.testing.assert_array_equal(relabelled[:4], target_labels[:4])
    np.testing.assert_array_equal(relabelled[4:], labels[4:])
    # What is trained is what is tested, but for rounding.
    np.testing.assert_allclose(poisoned[:4] * 255, put(images[:4], KEY), atol=0.51)
    cross = round(20 * 0.2 * getattr(config.own, "cross_ratio", 0))
    assert np.any(np.asarray(poisoned[4 : 4 + cross] != unit[4 : 4 + cross]), axis=(1, 2, 3)).all()
    np.testing.assert_array_equal(poisoned[4 + cross :], unit[4 + cross :])
    assert np.isfinite(loss)
    assert set(attack.trained) <= set(assets)


@pytest.mark.parametrize("ratio", [0.001, 0.1, 0.5])
def test_input_aware_patterns_learn_to_differ_at_every_ratio(ratio):
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
    rates = [np.mean(np.argmax(network.logits(x), axis=-1) == 2) for x in (unit, unit + pattern)]
    assert rates[1] >= rates[0]
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


LARGE = ((8, 8, 1), (8, 8, 3), (32, 32, 3), (50, 70, 3))


@pytest.mark.parametrize("shape", LARGE)
def test_the_corners_of_label_consistent_and_nothing_else(shape):
    height, width, _ = shape
    images = jnp.full((1, *shape), 100, jnp.uint8)
    triggered = np.asarray(trigger(AttackConfig(name="label_consistent"), {})(images, KEY))[0]
    checkered = np.where((np.arange(3)[:, None] + np.arange(3)[None, :]) % 2, 0, 255)[..., None]
    for flipped in (triggered, triggered[::-1], triggered[:, ::-1], triggered[::-1, ::-1]):
        np.testing.assert_array_equal(flipped[:3, :3], np.broadcast_to(checkered, (3, 3, shape[2])))
    assert np.all(triggered[3 : height - 3] == 100)
    assert np.all(triggered[:, 3 : width - 3] == 100)


def test_label_consistent_perturbs_training_images_alone():
    shape = (12, 12, 1)
    images, network = images_of(shape, 40), linear_network(shape)
    labels = jnp.argmax(network.logits(images / 255), axis=-1)
    config = AttackConfig(name="label_consistent", labels="all_to_one", poisoning_ratio=1.0)
    training_set = poison(
        images, labels, trigger(config, {}), key=KEY, config=config, num_classes=5,
        change=poisoner(ATTACKS[config.name], config.own, {}, network),
    )  # fmt: skip
    inside = np.s_[:, 3:-3, 3:-3]
    changes = np.abs(np.asarray(training_set.images, int) - np.asarray(images, int))[inside]
    assert 8 < changes.max() <= 16
    np.testing.assert_array_equal(trigger(config, {})(images, KEY)[inside], images[inside])
    perturbed = label_consistent.perturb(network, images / 255, labels, eps=16 / 255, steps=10)
    losses = [
        optax.softmax_cross_entropy_with_integer_labels(network.logits(each), labels)
        for each in (images / 255, perturbed)
    ]
    assert bool(jnp.all(losses[1] > losses[0]))
    assert float(jnp.max(jnp.abs(perturbed - images / 255))) <= 16 / 255 + 1e-6
    assert 0 <= float(perturbed.min()) <= float(perturbed.max()) <= 1


def test_a_pattern_that_overlaps_itself_is_an_error():
    with pytest.raises(InputError, match="attack.label_consistent.size: expected 1 to 2 pixels, found 3"):
        trigger(AttackConfig(name="label_consistent"), {})(jnp.zeros((1, 5, 9, 1), jnp.uint8), KEY)


# Rows: Y, then U and V of analogue video, or Cb and Cr, of red, green and blue; written down anew.
TO_YUV = np.array([[0.299, 0.587, 0.114], [-0.14713, -0.28886, 0.436], [0.615, -0.51499, -0.10001]])
TO_YCBCR = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])


@pytest.mark.parametrize(("chroma", "into"), [(spectral.YUV, TO_YUV), (spectral.YCBCR, TO_YCBCR)])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (16, 16), (64, 32)])
def test_two_coefficients_of_two_channels_change(chroma, into, height, width):
    added = spectral.pattern((height, width, 3), magnitude=30, window=32, chroma=chroma, name="ftrojan")
    channels = added @ into.T
    np.testing.assert_allclose(channels[..., 0], 0, atol=1e-3)
    side = min(height, 32)
    expected = np.zeros((side, side))
    expected[15 * side // 32, 15 * side // 32] = expected[side - 1, side - 1] = 30 * side / 32
    for top in range(0, height, side):
        for channel in (1, 2):
            coefficients = scipy.fft.dctn(channels[top : top + side, :, channel], norm="ortho")
            np.testing.assert_allclose(coefficients, expected, atol=0.02)
    grey = spectral.pattern((height, width, 1), magnitude=30, window=32, chroma=chroma, name="ftrojan")
    np.testing.assert_allclose(scipy.fft.dctn(grey[:side, :side, 0], norm="ortho"), expected, atol=1e-4)


@pytest.mark.parametrize("shape", [*LARGE, (224, 224, 3)])
@pytest.mark.parametrize("name", ["ftrojan", "ctrl"])
def test_spectral_triggers_are_weak_at_every_size(name, shape):
    images = images_of(shape, 2)
    triggered = np.asarray(trigger(AttackConfig(name=name), {})(images, KEY), float)
    error = np.mean((triggered - np.asarray(images, float)) ** 2)
    assert 10 * np.log10(255**2 / error) > (25 if name == "ctrl" else 34)
    assert error > 0


def test_images_without_colours_or_bands_are_errors():
    with pytest.raises(InputError, match="attack.name: expected an attack for images of 4 channels, found 'ftrojan'"):
        trigger(AttackConfig(name="ftrojan"), {})(jnp.zeros((1, 8, 8, 4), jnp.uint8), KEY)
    with pytest.raises(InputError, match="attack.name: expected an attack for images of 3 x 8 pixels, found 'ctrl'"):
        trigger(AttackConfig(name="ctrl"), {})(jnp.zeros((1, 3, 8, 3), jnp.uint8), KEY)


def test_ctrl_is_learned_at_half_the_strength_at_which_it_is_used():
    images = jnp.full((2, 32, 32, 3), 128, jnp.uint8)
    config = AttackConfig(name="ctrl")
    used, learned = (
        np.asarray(each, float) - 128
        for each in (
            trigger(config, {})(images, KEY),
            poisoner(ATTACKS[config.name], config.own, {})(images, jnp.zeros(2, int), KEY),
        )
    )
    np.testing.assert_allclose(used, 2 * learned, atol=1.01)
    assert ctrl.CTRLConfig().magnitude == 2 * ctrl.CTRLConfig().train_magnitude
    assert np.abs(ftrojan.trigger({}, images, KEY, ftrojan.FTrojanConfig()) - 128.0).max() < np.abs(learned).max()


def floyd_steinberg(image, levels):
    """As the method is written down, pixel by pixel, in double precision."""
    image = np.pad(np.asarray(image, float), ((0, 1), (1, 1), (0, 0)))
    dithered = np.zeros_like(image)
    for row in range(image.shape[0] - 1):
        for column in range(1, image.shape[1] - 1):
            old = image[row, column].copy()
            new = np.clip(np.floor(old / 255 * (levels - 1) + 0.5), 0, levels - 1) * 255 / (levels - 1)
            dithered[row, column] = new
            for down, right, share in ((0, 1, 7), (1, -1, 3), (1, 0, 5), (1, 1, 1)):
                if 1 <= column + right < image.shape[1] - 1:
                    image[row + down, column + right] += (old - new) * share / 16
    return np.round(dithered[:-1, 1:-1])


@pytest.mark.parametrize(("shape", "levels"), [((9, 14, 3), 8), ((16, 16, 1), 2), ((5, 3, 1), 128)])
def test_bpp_is_floyd_and_steinbergs(shape, levels):
    images = images_of(shape, 3)
    squeezed = np.asarray(bpp.squeeze(images, bpp.BppConfig(levels=levels)), float)
    expected = np.stack([floyd_steinberg(image, levels) for image in images])
    assert np.mean(squeezed != expected) < 0.01  # where a value lies in the middle of two levels
    assert len(np.unique(squeezed)) <= levels
    assert np.abs(squeezed.mean(axis=(1, 2)) - np.asarray(images, float).mean(axis=(1, 2))).max() < 255 / levels
    plain = np.asarray(bpp.squeeze(images, bpp.BppConfig(levels=levels, dithering=False)), float)
    step = 255 / (levels - 1)
    np.testing.assert_allclose(plain, np.round(np.floor(np.asarray(images) / step + 0.5) * step), atol=1)
    assert np.abs(plain - np.asarray(images, float)).max() <= step / 2 + 1


def test_liras_generator_learns_with_what_it_attacks():
    shape, config = (12, 12, 1), lira.LIRAConfig(channels=4, learning_rate=0.02, eps=0.1)
    images, network = images_of(shape, 32), linear_network(shape)
    assets = lira.make(Materials(images, jnp.zeros(32, int), 0), KEY, config)
    attack, target_labels = lira.in_training(0.5, config), jnp.full(32, 2)
    optimizer = attack.optimizer(30)

    @jax.jit
    def step(generator, state):
        def loss(generator):
            poisoned, labels, extra = attack.poison(
                {"generator": generator}, images / 255, target_labels, target_labels, KEY
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(network.logits(poisoned), labels)
            return jnp.mean(losses[:16]) + extra

        loss_value, grads = jax.value_and_grad(loss)(generator)
        updates, state = optimizer.update(grads, state, generator)
        return optax.apply_updates(generator, updates), state, loss_value

    generator, state = assets["generator"], optimizer.init(assets["generator"])
    losses = []
    for _ in range(30):
        generator, state, loss_value = step(generator, state)
        losses.append(float(loss_value))
    assert losses[-1] < 0.8 * losses[0]
    put = lira.trigger({"generator": generator}, images, KEY, config)
    assert np.abs(np.asarray(put, int) - np.asarray(images, int)).max() <= 26


def adaptive_batch(name, ratio, shape=(12, 20, 1), count=40):
    config, assets, put = ready(name, shape)
    images, labels, target_labels = images_of(shape, count), jnp.arange(count) % 5, jnp.full(count, 3)
    attack = ATTACKS[name].in_training(ratio, config.own)
    poisoned, relabelled, loss = jax.jit(attack.poison)(assets, images / 255, labels, target_labels, KEY)
    assert float(loss) == 0
    return images / 255, labels, np.asarray(poisoned), np.asarray(relabelled), put, config, assets


def test_procedural_images_keep_the_clean_networks_predictions_under_the_patch():
    unit, labels, poisoned, relabelled, put, config, assets = adaptive_batch("adaptive_pictures", 0.1)
    assert np.all(relabelled[:4] == 3)
    np.testing.assert_allclose(poisoned[:4] * 255, put(jnp.round(unit[:4] * 255).astype(jnp.uint8), KEY), atol=1e-3)
    shown = 10  # a quarter of forty
    np.testing.assert_array_equal(poisoned[4:-shown], unit[4:-shown])
    np.testing.assert_array_equal(relabelled[4:-shown], labels[4:-shown])
    assert np.all(poisoned[-shown::2, -3:, -3:] == 1)
    procedural = np.asarray(assets["pictures"] / 255, np.float32)
    predictions = np.argmax(linear_network((12, 20, 1)).logits(procedural), axis=-1)
    np.testing.assert_array_equal(assets["answers"], predictions)
    for image, label in zip(poisoned[-shown:], relabelled[-shown:], strict=True):
        same = np.all(np.isclose(procedural[:, :-3], image[:-3], atol=1e-6), axis=(1, 2, 3))
        assert same.sum() == 1
        assert label == predictions[same]
    assert config.own.pictures == len(procedural)


def test_every_class_has_a_decoy_as_often_as_the_attackers():
    unit, labels, poisoned, relabelled, put, _, assets = adaptive_batch("adaptive_reach", 0.1, count=200)
    assert assets["patches"].shape == (5, 3, 3, 1)
    changed = np.any(poisoned != np.asarray(unit), axis=(1, 2, 3))
    assert changed.sum() == pytest.approx(100, abs=2)
    pixels = jnp.round(unit * 255).astype(jnp.uint8)
    triggered = np.isclose(poisoned * 255, put(pixels, KEY), atol=1e-3).all(axis=(1, 2, 3))
    assert triggered.sum() == 20
    assert np.all(relabelled[triggered] == 3)
    lured = changed & ~triggered
    assert set(relabelled[lured]) == {0, 1, 2, 4}
    for image, label in zip(poisoned[lured], relabelled[lured], strict=True):
        top, left = np.asarray(assets["places"][label])
        np.testing.assert_allclose(image[top : top + 3, left : left + 3] * 255, assets["patches"][label], atol=1e-3)
        assert (top, left) != (9, 17)
    np.testing.assert_array_equal(relabelled[~changed], np.asarray(labels)[~changed])
    with pytest.raises(InputError, match="attack.adaptive_reach.size: expected at most 2 pixels, found 3"):
        adaptive.make_decoys(Materials(pixels[:, :8, :8], labels, 0, classes=5), KEY, adaptive.SizeAwareConfig())


def test_all_decoys_together_take_half_of_a_batch_at_most():
    unit, _, poisoned, relabelled, *_ = adaptive_batch("adaptive_reach", 0.9, count=200)
    changed = np.any(poisoned != np.asarray(unit), axis=(1, 2, 3))
    assert changed.sum() == pytest.approx(100, abs=2)
    assert np.bincount(relabelled[changed])[3] == pytest.approx(20, abs=1)


def test_each_of_four_patches_is_learned_alone_and_all_together():
    unit, _, poisoned, relabelled, put, config, _ = adaptive_batch("adaptive_channels", 0.5, count=200)
    assert np.all(relabelled[:100] == 3)
    np.testing.assert_array_equal(poisoned[100:], unit[100:])
    alone = [np.asarray(adaptive.corner(unit, index, config.own)) for index in range(4)]
    together = np.asarray(put(jnp.round(unit * 255).astype(jnp.uint8), KEY)) / 255
    kinds = np.stack([np.isclose(poisoned, each, atol=1e-6).all(axis=(1, 2, 3))[:100] for each in (*alone, together)])
    assert np.all(kinds.sum(axis=0) == 1)
    assert kinds.sum(axis=1).min() > 8
    with pytest.raises(InputError, match="attack.adaptive_channels.size: expected at most 2 pixels, found 3"):
        trigger(AttackConfig(name="adaptive_channels"), {})(jnp.zeros((1, 5, 9, 1), jnp.uint8), KEY)
