"""Training on the device: the same after a stop, on many devices and in one program."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from two_classes import NETWORK, init

from otbr_jax import InputError
from otbr_jax.attacks.attack import InTraining
from otbr_jax.data.sources import DataConfig, preprocess
from otbr_jax.metrics import Metrics
from otbr_jax.runs.devices import batch_mesh
from otbr_jax.steps.augment import augment
from otbr_jax.types import named_leaves
from otbr_jax.victims import training
from otbr_jax.victims.training import TrainingConfig, TrainingSet

CONFIG = TrainingConfig(epochs=4, batch_size=16, learning_rate=0.02, warmup=0.25, crop_padding=1, flip=True)


def data(count=70):
    images = jax.random.randint(jax.random.key(0), (count, 8, 8, 1), 0, 256).astype(jnp.uint8)
    labels = (images.mean((1, 2, 3)) > 127).astype(jnp.int32)
    return TrainingSet(images, labels, jnp.zeros_like(labels))


def prepare(images):
    return preprocess(images, DataConfig(name="none"))


def train(tiny, config=CONFIG, devices=1, **options):
    network, variables = tiny
    mesh = batch_mesh(jax.local_devices()[:devices])
    return training.train(network, variables, data(), key=jax.random.key(1), config=config, mesh=mesh, **options)


@pytest.fixture(scope="module")
def tiny():
    """(network, variables) of a network that compiles at once."""
    return dataclasses.replace(NETWORK, prepare=prepare), init(jax.random.key(0))


@pytest.fixture(scope="module")
def whole(tiny):
    return train(tiny)


def test_it_learns_and_says_how(tiny, whole):
    shown = []
    trained = train(
        tiny,
        dataclasses.replace(CONFIG, measure_every=3),
        measure=lambda variables, assets: Metrics(jnp.float32(0.5), jnp.float32(0.25), jnp.float32(0)),
        on_epoch=lambda **values: shown.append(values),
    )
    jax.tree.map(np.testing.assert_array_equal, trained.variables, whole.variables)  # measuring changes nothing
    np.testing.assert_array_equal(trained.history.acc, [0.5, 0.5])  # after epochs 3 and 4
    np.testing.assert_array_equal(trained.history.asr, [0.25, 0.25])
    assert trained.history.loss[-1] < trained.history.loss[0]
    assert [set(values) for values in shown] == [{"loss"}] * 2 + [{"loss", "acc", "asr"}] * 2
    assert trained.images_per_second > 0
    assert trained.seconds > 0


class StopError(Exception):
    pass


@pytest.mark.parametrize("stop_after", [1, 3])
def test_a_stopped_training_resumes_to_the_same_bits(tiny, whole, tmp_path, stop_after):
    epochs = []

    def stop(**values):
        epochs.append(values)
        if len(epochs) == stop_after + 1:  # its own epoch is not saved yet
            raise StopError

    with pytest.raises(StopError):
        train(tiny, on_epoch=stop, progress=tmp_path / "p", save_every=0)
    assert (tmp_path / "p").exists()
    seen = []
    trained = train(tiny, on_epoch=lambda **values: seen.append(values), progress=tmp_path / "p", save_every=0)
    assert [bool(values) for values in seen] == [False] * stop_after + [True] * (4 - stop_after)
    jax.tree.map(np.testing.assert_array_equal, trained.variables, whole.variables)
    np.testing.assert_array_equal(trained.history.loss, whole.history.loss)


def test_a_damaged_state_starts_anew(tiny, whole, tmp_path, caplog):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "_METADATA").write_text("nonsense")
    trained = train(tiny, progress=tmp_path / "p")
    assert "the saved state of a training cannot be read" in caplog.text
    jax.tree.map(np.testing.assert_array_equal, trained.variables, whole.variables)


def test_eight_devices_agree_with_one(tiny, whole):
    eight = train(tiny, devices=8)
    np.testing.assert_allclose(eight.history.loss, whole.history.loss, rtol=1e-3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), eight.variables, whole.variables)


def test_every_epoch_runs_the_program_of_the_first(tiny):
    network, variables = tiny
    traced = chex.assert_max_traces(network.train, n=1)
    counted = dataclasses.replace(network, apply_train=traced)
    train((counted, variables))


def test_bfloat16_keeps_weights_and_statistics_in_float32(tiny, whole):
    seen = []
    network, variables = tiny

    def spy(values, images):
        seen.append((images.dtype, named_leaves(values["params"])["conv/kernel"].dtype))
        logits, state = network.train(values, images)
        seen.append((logits.dtype, jax.tree.leaves(state)[0].dtype))
        return logits, state

    counted = dataclasses.replace(network, apply_train=spy)
    trained = train((counted, variables), dataclasses.replace(CONFIG, precision="bfloat16"))
    assert seen[0] == (jnp.bfloat16, jnp.bfloat16)
    assert seen[1] == (jnp.bfloat16, jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(trained.variables)} == {np.dtype(np.float32)}
    np.testing.assert_allclose(trained.history.loss, whole.history.loss, rtol=0.05)


def test_an_attack_that_trains_along(tiny, tmp_path):
    """Its arrays get gradients from the network's loss and its own, and are saved and resumed like the network."""

    def poison(assets, images, labels, goals, key):
        return images + assets["fixed"] * assets["moving"], labels, jnp.sum(jnp.square(assets["moving"] - 1))

    import optax

    attack = InTraining(poison, trained=("moving",), optimizer=lambda steps: optax.sgd(0.02))
    assets = {"fixed": jnp.float32(0.1), "moving": jnp.zeros((8, 8, 1))}
    trained = train(tiny, attack=attack, assets=assets)
    assert float(trained.assets["fixed"]) == pytest.approx(0.1)
    assert 0.1 < float(trained.assets["moving"].mean()) < 1

    def stop(**values):
        if values:
            raise StopError

    for _ in range(2):  # stopped twice, the first time before anything was saved
        with pytest.raises(StopError):
            train(tiny, attack=attack, assets=assets, progress=tmp_path / "p", save_every=0, on_epoch=stop)
    again = train(tiny, attack=attack, assets=assets, progress=tmp_path / "p", save_every=0)
    jax.tree.map(np.testing.assert_array_equal, again.assets, trained.assets)


def test_a_loss_that_is_not_finite_stops_at_once(tiny, tmp_path):
    epochs = []
    config = dataclasses.replace(CONFIG, learning_rate=1e30, warmup=0.0)
    with pytest.raises(InputError, match=r"training.learning_rate: expected a finite loss, found nan in epoch [12]"):
        train(tiny, config, on_epoch=lambda **values: epochs.append(values), progress=tmp_path / "p", save_every=0)
    assert len(epochs) < 2
    assert not (tmp_path / "p").exists()


def test_crops_and_flips():
    images = jnp.arange(1, 1 + 3 * 5 * 6 * 2, dtype=jnp.float32).reshape(3, 5, 6, 2)
    np.testing.assert_array_equal(augment(images, key=jax.random.key(0), crop_padding=0, flip=False), images)
    many = jnp.tile(images[:1], (200, 1, 1, 1))
    flipped = augment(many, key=jax.random.key(0), crop_padding=0, flip=True)
    mirrored = np.all(np.asarray(flipped == many[:, :, ::-1]), axis=(1, 2, 3))
    assert 70 < mirrored.sum() < 130
    np.testing.assert_array_equal(flipped[~mirrored], many[~mirrored])
    cropped = np.asarray(augment(many, key=jax.random.key(0), crop_padding=2, flip=False))
    padded = np.pad(images[0], ((2, 2), (2, 2), (0, 0)))
    windows = {padded[i : i + 5, j : j + 6].tobytes() for i in range(5) for j in range(5)}
    assert {image.tobytes() for image in cropped} == windows  # all of them, and no other


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "training.epochs: expected a whole number of at least 1, found 0"),
        ({"warmup": 1.0}, r"training.warmup: expected a number in \[0, 1\)"),
        ({"crop_padding": -1}, "training.crop_padding: expected a whole number of at least 0, in pixels, found -1"),
        ({"precision": "float16"}, "training.precision: expected one of"),
        ({"measure_every": 0}, "training.measure_every: expected a whole number of at least 1, in epochs, found 0"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(InputError, match=message):
        TrainingConfig(**changes)


def test_a_warm_up_of_all_steps_leaves_one(tiny):
    trained = train(tiny, dataclasses.replace(CONFIG, epochs=1, warmup=0.99))
    assert np.isfinite(trained.history.loss).all()


def test_a_state_that_cannot_be_saved_is_no_reason_to_stop(tiny, whole, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    trained = train(tiny, progress=tmp_path / "file" / "p", save_every=0)
    assert "the state of a training cannot be saved; the training goes on" in caplog.text
    jax.tree.map(np.testing.assert_array_equal, trained.variables, whole.variables)


def test_too_few_images_for_a_batch(tiny):
    with pytest.raises(InputError, match="training.batch_size: expected at most 70 images, found 71"):
        train(tiny, dataclasses.replace(CONFIG, batch_size=71))
