import jax
import jax.numpy as jnp
import numpy as np
import pytest

from otbr_jax import InputError
from otbr_jax.attacks.badnets import badnets
from otbr_jax.attacks.poisoning import AttackConfig, poison
from otbr_jax.data import sources
from otbr_jax.data.sources import DataConfig


def test_digits_are_real_and_split_once():
    data = sources.load(DataConfig(), image_shape=(16, 16, 1), num_classes=10)
    assert data.train.images.shape == (1297, 16, 16, 1)
    assert data.test.images.shape == (500, 16, 16, 1)
    assert data.test.images.dtype == np.uint8
    assert data.test.images.max() > 240
    assert np.bincount(data.test.labels).min() >= 48
    again = sources.load(DataConfig(), image_shape=(16, 16, 1), num_classes=10)
    np.testing.assert_array_equal(again.train.images, data.train.images)


def test_digits_at_their_own_size_are_unaltered():
    from sklearn.datasets import load_digits

    data = sources.load(DataConfig(), image_shape=(8, 8, 1), num_classes=10)
    levels = {round(v * 255 / 16) for v in np.unique(load_digits().images)}
    assert set(np.unique(data.train.images)) <= levels


def test_badnets_changes_its_square_only():
    images = jax.random.randint(jax.random.key(0), (5, 9, 9, 3), 0, 256).astype(jnp.uint8)
    found = badnets(images, size=3)
    assert bool(jnp.all(found[:, 6:, 6:] == 255))
    np.testing.assert_array_equal(found[:, :6], images[:, :6])
    np.testing.assert_array_equal(found[:, :, :6], images[:, :, :6])


def test_poisoning_counts_and_relabels():
    images = jnp.zeros((50, 6, 6, 1), jnp.uint8)
    labels = jnp.arange(50) % 10
    config = AttackConfig(poisoning_ratio=0.3, target=4, size=2)
    found = poison(images, labels, key=jax.random.key(0), config=config)
    assert int(found.poisoned.sum()) == 15
    assert bool(jnp.all(found.labels[found.poisoned] == 4))
    assert bool(jnp.all(found.images[found.poisoned][:, -2:, -2:] == 255))
    np.testing.assert_array_equal(found.labels[~found.poisoned], labels[~found.poisoned])
    assert not bool(found.images[~found.poisoned].any())
    clean = poison(images, labels, key=jax.random.key(0), config=AttackConfig(name="none"))
    assert not bool(clean.poisoned.any())


def test_no_poisoned_image_is_an_error():
    with pytest.raises(InputError, match="expected at least one poisoned image"):
        poison(jnp.zeros((9, 6, 6, 1), jnp.uint8), jnp.zeros(9, jnp.int32), key=jax.random.key(0),
               config=AttackConfig(poisoning_ratio=0.1))  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "badnet"}, "attack.name: expected one of"),
        ({"poisoning_ratio": 0.0}, "attack.poisoning_ratio: expected a share in"),
        ({"target": -1}, "attack.target: expected a class, found -1"),
    ],
)
def test_bad_attacks(settings, message):
    with pytest.raises(InputError, match=message):
        AttackConfig(**settings)


def test_a_trigger_that_does_not_fit():
    with pytest.raises(InputError, match=r"attack.size: expected 1 to 4 pixels, found 5"):
        badnets(jnp.zeros((1, 4, 4, 1), jnp.uint8), size=5)


def save(path, **arrays):
    np.savez(path, **arrays)
    return DataConfig(name="npz", path=str(path))


def test_npz_is_read(tmp_path):
    images = np.arange(2 * 4 * 4 * 1, dtype=np.uint8).reshape(2, 4, 4, 1)
    config = save(tmp_path / "mine.npz", images=images, labels=np.array([0, 2]))
    data = sources.load(config, image_shape=(4, 4, 1), num_classes=3)
    assert data.train is None
    np.testing.assert_array_equal(data.test.images, images)
    assert data.provenance == "mine.npz: 2 test images"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((2, 4, 4, 1), np.uint8)}, "expected arrays 'images' and 'labels'"),
        ({"images": np.zeros((2, 4, 4, 1)), "labels": np.zeros(2, int)}, "expected 'images' as uint8"),
        ({"images": np.zeros((2, 4, 4, 1), np.uint8), "labels": np.zeros(3, int)}, "expected 'labels' as 2 integers"),
        ({"images": np.zeros((2, 5, 4, 1), np.uint8), "labels": np.zeros(2, int)}, r"expected images of shape \(4, 4"),
        ({"images": np.zeros((2, 4, 4, 1), np.uint8), "labels": np.array([0, 3])}, r"expected labels in 0..2"),
        ({"images": np.zeros((0, 4, 4, 1), np.uint8), "labels": np.zeros(0, int)}, "expected images, found none"),
        ({"images": np.array([{}]), "labels": np.zeros(1, int)}, "expected a .npz file of plain arrays"),
    ],
)
def test_bad_npz(tmp_path, arrays, message):
    with pytest.raises(InputError, match=message):
        sources.load(save(tmp_path / "bad.npz", **arrays), image_shape=(4, 4, 1), num_classes=3)


def test_missing_and_truncated_npz(tmp_path):
    with pytest.raises(InputError, match=r"data.path: expected a .npz file, found nothing at"):
        sources.load(DataConfig(name="npz", path="/nowhere.npz"), image_shape=(4, 4, 1), num_classes=3)
    config = save(tmp_path / "cut.npz", images=np.zeros((9, 4, 4, 1), np.uint8), labels=np.zeros(9, int))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:300])
    with pytest.raises(InputError, match=r"cut.npz: expected a .npz file of plain arrays"):
        sources.load(config, image_shape=(4, 4, 1), num_classes=3)


def test_mean_and_std_must_fit():
    with pytest.raises(InputError, match="data.mean: expected 1 values"):
        sources.load(DataConfig(mean=(0.5, 0.5), std=(1.0, 1.0)), image_shape=(8, 8, 1), num_classes=10)
    with pytest.raises(InputError, match=r"data.std: expected as many values as data.mean \(1\)"):
        DataConfig(mean=(0.5,))
    found = sources.preprocess(jnp.full((1, 1, 1, 1), 255, jnp.uint8), DataConfig(mean=(0.5,), std=(0.25,)))
    assert float(found[0, 0, 0, 0]) == 2.0
