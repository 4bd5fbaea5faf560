import hashlib
import importlib.util
import io
import itertools
import json
import os
import pathlib
import subprocess
import sys
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from launching import launch
from PIL import Image

from otbr_jax import InputError
from otbr_jax.data import archives, image_files, prepare, prepared, sources
from otbr_jax.data.sources import DataConfig
from otbr_jax.steps import sampling

ROOT = pathlib.Path(__file__).resolve().parent.parent


def run(*command):
    environment = {key: value for key, value in os.environ.items() if key != "TFDS_DATA_DIR"}
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


def png(pixels, kind="png"):
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(pixels).squeeze()).save(buffer, kind)
    return buffer.getvalue()


def noise(count, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape)).astype(np.uint8)


# Digits.


def test_digits_are_real_and_split_once():
    data = sources.load(DataConfig(), image_shape=(16, 16, 1), num_classes=10)
    assert data.train.images.shape == (1297, 16, 16, 1)
    assert data.test.images.shape == (500, 16, 16, 1)
    assert data.test.images.dtype == np.uint8
    assert data.test.images.max() > 240
    assert np.bincount(data.test.labels).min() >= 48
    assert data.provenance.endswith("resized to 16x16: 1,297 training and 500 test images")
    again = sources.load(DataConfig(), image_shape=(16, 16, 1), num_classes=10)
    np.testing.assert_array_equal(again.train.images, data.train.images)


def test_digits_at_their_own_size_are_unaltered():
    from sklearn.datasets import load_digits

    data = sources.load(DataConfig(), image_shape=(8, 8, 1), num_classes=10)
    levels = {round(v * 255 / 16) for v in np.unique(load_digits().images)}
    assert set(np.unique(data.train.images)) <= levels


# Some of the images.


def test_a_subset_has_the_same_images_again_and_of_every_class_its_share():
    labels = np.repeat(np.arange(4), (400, 200, 100, 100))[np.random.default_rng(1).permutation(800)]
    some, more = sampling.stratified_sample(labels, 80), sampling.stratified_sample(labels, 200)
    np.testing.assert_array_equal(np.bincount(labels[some]), (40, 20, 10, 10))
    np.testing.assert_array_equal(np.bincount(labels[more]), (100, 50, 25, 25))
    assert set(some) <= set(more)
    np.testing.assert_array_equal(some, sampling.stratified_sample(labels, 80))
    np.testing.assert_array_equal(sampling.stratified_sample(labels, 800), np.arange(800))


def test_a_subset_of_digits():
    config = DataConfig(train_images=200, test_images=50)
    data = sources.load(config, image_shape=(8, 8, 1), num_classes=10)
    every = sources.load(DataConfig(), image_shape=(8, 8, 1), num_classes=10)
    assert (len(data.train.images), len(data.test.images)) == (200, 50)
    assert np.bincount(data.train.labels).min() >= 19
    known = {(image.tobytes(), label) for image, label in zip(*every.train, strict=True)}
    assert {(image.tobytes(), label) for image, label in zip(*data.train, strict=True)} <= known
    assert data.provenance.endswith("200 of 1,297 training and 50 of 500 test images, of every class its share")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_images": 1298}, r"data.train_images: expected at most 1,297, as many as there are, found 1,298"),
        ({"test_images": 501}, r"data.test_images: expected at most 500, as many as there are, found 501"),
        ({"test_images": -1}, r"data.test_images: expected a whole number of at least 0, found -1"),
    ],
)
def test_subsets_that_cannot_be(settings, message):
    with pytest.raises(InputError, match=message):
        sources.load(DataConfig(**settings), image_shape=(8, 8, 1), num_classes=10)


# A .npz file.


def save(path, **arrays):
    np.savez(path, **arrays)
    return DataConfig(name="npz", path=str(path))


def test_npz_is_read(tmp_path):
    images = np.arange(2 * 4 * 4 * 1, dtype=np.uint8).reshape(2, 4, 4, 1)
    config = save(tmp_path / "mine.npz", images=images, labels=np.array([0, 2]))
    data = sources.load(config, image_shape=(4, 4, 1), num_classes=3)
    assert data.train is None
    np.testing.assert_array_equal(data.test.images, images)
    assert data.test.labels.dtype == np.int32
    assert data.provenance == "mine.npz: 2 test images"


def test_npz_with_training_images(tmp_path):
    images, labels = noise(5, 4, 4, 3), np.array([0, 1, 2, 1, 0])
    config = save(tmp_path / "mine.npz", images=images[:2], labels=labels[:2], train_images=images, train_labels=labels)
    data = sources.load(config, image_shape=(4, 4, 3), num_classes=3)
    np.testing.assert_array_equal(data.train.images, images)
    np.testing.assert_array_equal(data.train.labels, labels)
    assert data.provenance == "mine.npz: 5 training and 2 test images"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((2, 4, 4, 1), np.uint8)}, "expected arrays 'images' and 'labels'"),
        ({"images": np.full((2, 4, 4, 1), -0.5), "labels": np.zeros(2, int)}, r"'images' as uint8 .* in -0.5..-0.5"),
        ({"images": np.zeros((2, 4, 4, 1), np.uint8), "labels": np.array([1, 3])}, "count from 1: subtract 1"),
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


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"train_labels": np.zeros(2, int)}, "expected arrays 'train_images' and 'train_labels'"),
        ({"train_images": np.zeros((2, 4)), "train_labels": np.zeros(2, int)}, "expected 'train_images' as uint8"),
        (
            {"train_images": np.zeros((2, 5, 4, 1), np.uint8), "train_labels": np.zeros(2, int)},
            r"expected images of shape \(4, 4",
        ),
    ],
)
def test_bad_training_arrays_of_npz(tmp_path, arrays, message):
    test = {"images": np.zeros((2, 4, 4, 1), np.uint8), "labels": np.zeros(2, int)}
    with pytest.raises(InputError, match=message):
        sources.load(save(tmp_path / "bad.npz", **test, **arrays), image_shape=(4, 4, 1), num_classes=3)


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
    prepared_image = sources.preprocess(jnp.full((1, 1, 1, 1), 255, jnp.uint8), DataConfig(mean=(0.5,), std=(0.25,)))
    assert float(prepared_image[0, 0, 0, 0]) == 2.0


# Images.


def decode(*files, shape):
    return image_files.decode(files, shape, name=lambda place: f"image {place}")


def test_decoding_restores_the_pixels():
    colour, grey = noise(300, 5, 7, 3), noise(2, 5, 7, 1)
    np.testing.assert_array_equal(decode(*map(png, colour), shape=(5, 7, 3)), colour)
    np.testing.assert_array_equal(decode(*map(png, grey), shape=(5, 7, 1)), grey)
    np.testing.assert_array_equal(decode(*map(png, grey), shape=(5, 7, 3)), np.repeat(grey, 3, axis=-1))


def test_resizing_is_bilinear_and_sees_every_pixel():
    steps = np.repeat(np.arange(0, 256, 16, dtype=np.uint8)[None], 16, axis=0)
    smaller, larger = decode(png(steps), shape=(4, 4, 1)), decode(png(steps), shape=(32, 32, 1))
    assert np.all(np.diff(smaller[0, 0, :, 0].astype(int)) > 0)
    assert abs(smaller.mean() - steps.mean()) < 2
    assert np.all(np.diff(larger[0, 0, :, 0].astype(int)) >= 0)
    stripes = np.tile(np.array([0, 255], np.uint8), (32, 16))  # picking pixels would give black or white
    assert np.abs(decode(png(stripes), shape=(8, 8, 1)).astype(int) - 128).max() < 30


@pytest.mark.parametrize(
    ("file", "shape", "message"),
    [
        (b"no image", (4, 4, 3), "image 0: expected an image, found: no known image format"),
        (png(noise(1, 64, 64, 3)[0])[:3000], (4, 4, 3), "image 0: expected an image, found: "),
        (png(noise(1, 4, 4, 3)[0]), (4, 4, 1), "image 0: expected a grey image as model.image_shape says"),
        (
            png(np.full((4, 4), 1e6, np.float32), "tiff"),
            (4, 4, 1),
            "image 0: expected values of 16 bits, or floating point",
        ),
        (png(noise(1, 4, 4, 3)[0]), (4, 4, 2), "model.image_shape: expected 1 or 3 channels"),
    ],
)
def test_bad_image_files(file, shape, message):
    with pytest.raises(InputError, match=message):
        decode(file, shape=shape)


def test_whatever_people_save_is_read():
    grey, colour = noise(1, 4, 6, 1)[0], noise(1, 4, 6, 3)[0]

    def saved(image, kind, **options):
        content = io.BytesIO()
        image.save(content, kind, **options)
        return content.getvalue()

    for kind in ("BMP", "PPM", "TIFF", "TGA", "WEBP"):
        options = {"lossless": True} if kind == "WEBP" else {}
        np.testing.assert_array_equal(
            decode(saved(Image.fromarray(colour), kind, **options), shape=(4, 6, 3))[0], colour
        )
    with_alpha = Image.fromarray(np.concatenate([colour, grey], axis=-1))
    np.testing.assert_array_equal(decode(saved(with_alpha, "PNG"), shape=(4, 6, 3))[0], colour)
    few = Image.fromarray(colour).quantize(8)
    np.testing.assert_array_equal(decode(saved(few, "PNG"), shape=(4, 6, 3))[0], np.asarray(few.convert("RGB")))
    inks = Image.fromarray(colour).convert("CMYK")
    np.testing.assert_array_equal(decode(saved(inks, "TIFF"), shape=(4, 6, 3))[0], np.asarray(inks.convert("RGB")))
    deep = (grey[..., 0].astype(np.uint16) << 8) + 77
    np.testing.assert_array_equal(decode(png(deep), shape=(4, 6, 1))[0], grey)
    np.testing.assert_array_equal(decode(png(grey[..., 0].astype(np.float32) / 255, "tiff"), shape=(4, 6, 1))[0], grey)
    np.testing.assert_array_equal(decode(png(np.repeat(grey, 3, axis=-1)), shape=(4, 6, 1))[0], grey)
    notes = Image.Exif()
    notes[0x0112] = 6  # the camera was turned
    turned = saved(Image.fromarray(colour), "PNG", exif=notes)
    np.testing.assert_array_equal(decode(turned, shape=(6, 4, 3))[0], np.rot90(colour, -1))


def test_arrays_as_people_save_them(tmp_path, caplog):
    images, labels = noise(3, 4, 5, 3), np.array([2, 0, 1])
    hot = np.eye(3)[labels]
    for arrays in (
        {"images": (images / 255).astype(np.float32), "labels": labels},
        {"images": images.astype(np.float64), "labels": labels[:, None]},
        {"images": images.transpose(0, 3, 1, 2), "labels": labels.astype(np.float32)},
        {"x_test": images, "y_test": hot, "x_train": images, "y_train": hot.astype(bool)},
    ):
        data = sources.load(save(tmp_path / "a.npz", **arrays), image_shape=(4, 5, 3), num_classes=3)
        np.testing.assert_array_equal(data.test.images, images)
        np.testing.assert_array_equal(data.test.labels, labels)
        assert (data.train is None) == ("x_train" not in arrays)
    grey = sources.load(
        save(tmp_path / "g.npz", images=images[..., 0], labels=labels), image_shape=(4, 5, 1), num_classes=3
    )
    np.testing.assert_array_equal(grey.test.images, images[..., :1])
    for told in (
        "images in [0, 1] times 255",
        "images [n, c, h, w] with",
        "one-hot labels",
        "images [n, h, w] as grey",
    ):
        assert told in caplog.text


# A folder.


def make_folder(root, images, *, splits=("train", "test"), classes=("cat", "dog")):
    for split in splits:
        for label, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for place in range(label, len(images), len(classes)):
                (root / split / name / f"{place:03d}.png").write_bytes(png(images[place]))
    return DataConfig(name="folder", path=str(root))


def test_a_folder_is_read(tmp_path):
    images = noise(6, 8, 8, 3)
    config = make_folder(tmp_path / "pets", images)
    (tmp_path / "pets" / "test" / "dog" / "notes.txt").write_text("no image")
    (tmp_path / "pets" / "test" / ".hidden").mkdir()
    Image.fromarray(noise(1, 20, 30, 3)[0]).save(tmp_path / "pets" / "test" / "dog" / "z.JPG")
    data = sources.load(config, image_shape=(8, 8, 3), num_classes=2)
    np.testing.assert_array_equal(data.train.images, images[[0, 2, 4, 1, 3, 5]])
    np.testing.assert_array_equal(data.train.labels, [0, 0, 0, 1, 1, 1])
    assert data.test.images.shape == (7, 8, 8, 3)
    assert data.provenance == "pets (a folder of images, as 8x8x3): 6 training and 7 test images"
    some = sources.load(
        DataConfig(name="folder", path=config.path, train_images=2), image_shape=(8, 8, 3), num_classes=2
    )
    np.testing.assert_array_equal(some.train.labels, [0, 1])


def test_a_folder_without_training_images(tmp_path):
    data = sources.load(
        make_folder(tmp_path, noise(4, 4, 4, 1), splits=("test",)), image_shape=(4, 4, 1), num_classes=2
    )
    assert data.train is None
    assert len(data.test.images) == 4


def spoil(root, what):
    if what == "class":
        (root / "train" / "bird").mkdir()
    elif what == "image":
        (root / "test" / "dog" / "001.png").write_bytes(b"nothing")
    elif what == "none":
        for file in (root / "test").rglob("*.png"):
            file.unlink()
    elif what == "test":
        (root / "test").rename(root / "other")


@pytest.mark.parametrize(
    ("what", "classes", "message"),
    [
        ("class", 2, r"expected the same classes in train and test, found 'bird' in train only"),
        ("image", 2, r"test/dog/001.png: expected an image, found: no known image format"),
        ("none", 2, r"data 'folder': expected images, found none"),
        ("test", 2, r"pets: expected a folder of one of the names test, testing, val, found none"),
        ("nothing", 3, r"data 'folder': expected 3 classes as model.num_classes says, found 2"),
    ],
)
def test_bad_folders(tmp_path, what, classes, message):
    config = make_folder(tmp_path / "pets", noise(4, 4, 4, 1))
    spoil(tmp_path / "pets", what)
    with pytest.raises(InputError, match=message):
        sources.load(config, image_shape=(4, 4, 1), num_classes=classes)


def test_numbers_are_labels_in_their_order(tmp_path, caplog):
    names = [str(number) for number in range(12)]
    colours = np.repeat(np.arange(12, dtype=np.uint8), 16).reshape(12, 4, 4, 1)
    config = make_folder(tmp_path / "numbers", colours, splits=("test",), classes=names)
    data = sources.load(config, image_shape=(4, 4, 1), num_classes=12)
    np.testing.assert_array_equal(data.test.images[:, 0, 0, 0], data.test.labels)
    assert "classes are numbers, and labels follow their order: label 2 is 2" in caplog.text
    caplog.clear()
    config = make_folder(tmp_path / "named", colours, splits=("test",), classes=[f"class{name}" for name in names])
    data = sources.load(config, image_shape=(4, 4, 1), num_classes=12)
    assert data.test.images[2, 0, 0, 0] == 10
    assert "label 2 is class10; if it was class2 for the network, rename" in caplog.text


@pytest.mark.parametrize(
    ("splits", "train", "test"),
    [(("train", "val"), 4, 4), (("Training", "valid"), 4, 4), (("",), None, 4), (("val", "test"), None, 4)],
)
def test_parts_by_the_names_that_people_give_them(tmp_path, splits, train, test):
    config = make_folder(tmp_path / "pets", noise(4, 4, 4, 1), splits=splits)
    (tmp_path / "pets" / "__MACOSX" / "test").mkdir(parents=True)
    data = sources.load(config, image_shape=(4, 4, 1), num_classes=2)
    assert (None if data.train is None else len(data.train.labels), len(data.test.labels)) == (train, test)


def test_what_is_left_out_of_a_folder_is_counted(tmp_path, caplog):
    config = make_folder(tmp_path / "pets", noise(4, 4, 4, 1), splits=("test",))
    root = tmp_path / "pets" / "test"
    (root / "owl").mkdir()
    for name in ("a.txt", "b.txt", "c.mp4", "Thumbs.db", ".DS_Store"):
        (root / "dog" / name).write_text("no image")
    sources.load(config, image_shape=(4, 4, 1), num_classes=3)
    assert "test: skipped files that are no images: 2 of .txt, 1 of .mp4" in caplog.text
    assert "test: no images of owl" in caplog.text
    assert ".db" not in caplog.text


def test_no_folder(tmp_path):
    for path in ("", str(tmp_path / "nowhere")):
        with pytest.raises(InputError, match=r"data.path: expected a folder with test/CLASS/\*.png, found nothing at"):
            sources.load(DataConfig(name="folder", path=path), image_shape=(4, 4, 1), num_classes=2)
    (tmp_path / "test").mkdir()
    with pytest.raises(InputError, match=r"test: expected a folder for every class, found none"):
        sources.load(DataConfig(name="folder", path=str(tmp_path)), image_shape=(4, 4, 1), num_classes=2)


# Data sets of TensorFlow Datasets, written here without it: records, and descriptions as it writes them.


def write_shard(path, images, labels):
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    writer = ArrayRecordWriter(str(path), "group_size:1")
    for image, label in zip(images, labels, strict=True):
        example = tf_example_pb2.Example()
        example.features.feature["image"].bytes_list.value.append(png(image))
        example.features.feature["label"].int64_list.value.append(int(label))
        writer.write(example.SerializeToString())
    writer.close()


def write_prepared(root, name="mnist", *, version="3.0.1", shape=(8, 8, 1), shards=(30, 20), classes=10, seed=0):
    """A data set whose training images are in shards of 30 and 20, and whose 20 test images are in one."""
    folder = root / name / version
    folder.mkdir(parents=True)
    contents, splits = {}, []
    for split, lengths in (("train", shards), ("test", (20,))):
        images = noise(sum(lengths), *shape, seed=seed)
        labels = np.arange(len(images)) % classes
        bounds = np.cumsum((0, *lengths))
        for number, (start, end) in enumerate(itertools.pairwise(bounds)):
            path = folder / f"{name}-{split}.array_record-{number:05d}-of-{len(lengths):05d}"
            write_shard(path, images[start:end], labels[start:end])
        contents[split] = images, labels
        splits.append(
            {
                "name": split,
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "numBytes": "1",
                "shardLengths": [str(length) for length in lengths],
            }
        )
    describe(folder, fileFormat="array_record", name=name, version=version, splits=splits)
    package = "tensorflow_datasets.core.features"
    features = {
        "image": {
            "pythonClassName": f"{package}.image_feature.Image",
            "image": {"dtype": "uint8", "shape": {"dimensions": [str(size) for size in shape]}},
        },
        "label": {
            "pythonClassName": f"{package}.class_label_feature.ClassLabel",
            "classLabel": {"numClasses": str(classes)},
        },
    }
    whole = {"pythonClassName": f"{package}.features_dict.FeaturesDict", "featuresDict": {"features": features}}
    (folder / "features.json").write_text(json.dumps(whole))
    return contents


def describe(folder, **changes):
    path = folder / "dataset_info.json"
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | changes))


def load_prepared(root, name="mnist", *, shape=(8, 8, 1), classes=10, **settings):
    return sources.load(DataConfig(name, data_dir=str(root), **settings), image_shape=shape, num_classes=classes)


def test_a_prepared_data_set_is_read(tmp_path):
    contents = write_prepared(tmp_path)
    data = load_prepared(tmp_path)
    for part, (images, labels) in ((data.train, contents["train"]), (data.test, contents["test"])):
        np.testing.assert_array_equal(part.images, images)
        np.testing.assert_array_equal(part.labels, labels)
        assert (part.images.dtype, part.labels.dtype) == (np.uint8, np.int32)
    assert data.provenance == "mnist/3.0.1 of TensorFlow Datasets: 50 training and 20 test images"
    some = load_prepared(tmp_path, shape=(4, 4, 3), train_images=10)
    assert some.train.images.shape == (10, 4, 4, 3)
    np.testing.assert_array_equal(np.sort(some.train.labels), np.arange(10))
    assert some.provenance == (
        "mnist/3.0.1 of TensorFlow Datasets, as 4x4x3: 10 of 50 training and 20 test images, of every class its share"
    )


def test_the_newest_version_is_read_from_the_usual_place(tmp_path, monkeypatch):
    write_prepared(tmp_path, version="3.0.9")
    newest = write_prepared(tmp_path, version="3.0.10", seed=1)
    (tmp_path / "mnist" / "incomplete.ABC_4.0.0").mkdir()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    np.testing.assert_array_equal(load_prepared("").test.images, newest["test"][0])
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert prepared.data_directory("") == tmp_path / "tensorflow_datasets"


@pytest.mark.slow
def test_reading_imports_no_tensorflow(tmp_path):
    write_prepared(tmp_path)
    code = (
        "import sys; from otbr_jax.data.sources import DataConfig, load\n"
        f"data = load(DataConfig('mnist', data_dir={str(tmp_path)!r}), image_shape=(8, 8, 1), num_classes=10)\n"
        "print(len(data.train.images), 'tensorflow' in sys.modules)"
    )
    process = run("-c", code)
    assert process.stdout.split() == ["50", "False"], process.stderr


def test_a_data_set_that_is_not_prepared(tmp_path):
    with pytest.raises(InputError) as error:
        load_prepared(tmp_path, "gtsrb")
    assert str(error.value) == (
        f"data.data_dir: expected the data set 'gtsrb' in {tmp_path}, found none there; to prepare it: "
        f"python -m launch.prepare_data --name=gtsrb --data_dir={tmp_path}"
    )
    with pytest.raises(InputError, match=r"expected the data set 'mnist' in .*nowhere, found no such folder; to prep"):
        load_prepared(tmp_path / "nowhere")


def cut(path, length):
    path.write_bytes(path.read_bytes()[:length])


def flip(path):
    content = bytearray(path.read_bytes())
    for place in range(200, 400):
        content[place] ^= 255
    path.write_bytes(content)


SHARD = "mnist-train.array_record-00001-of-00002"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: (f / SHARD).unlink(),
            f"{SHARD}: expected a file of 20 examples, found nothing; remove .*3.0.1 and ",
        ),
        (
            lambda f: cut(f / SHARD, 70_000),
            f"{SHARD}: expected 20 examples, found 0 readable ones; remove .*3.0.1 and ",
        ),
        (lambda f: cut(f / SHARD, 0), f"{SHARD}: expected 20 examples, found 0 readable ones"),
        (lambda f: (f / SHARD).write_bytes(b"x" * 200_000), f"{SHARD}: expected 20 examples, found 0 readable ones"),
        (lambda f: flip(f / SHARD), r"3.0.1: split 'train': expected readable examples, found: Corrupted"),
        (
            lambda f: (f / SHARD).write_bytes((f / SHARD.replace("00001-", "00000-")).read_bytes()),
            f"{SHARD}: expected 20 examples, found 30 readable ones",
        ),
        (lambda f: describe(f, fileFormat="tfrecord"), r"3.0.1: expected files of kind array_record, found tfrecord"),
        (lambda f: describe(f, splits=[]), r"3.0.1: expected splits 'train' and 'test', found \[\]"),
        (lambda f: cut(f / "dataset_info.json", 40), r"3.0.1: expected a data set of images with labels, found: "),
        (lambda f: cut(f / "features.json", 40), r"3.0.1: expected a data set of images with labels, found: "),
        (lambda f: (f / "dataset_info.json").unlink(), r"3.0.1: expected a data set of images with labels, found: "),
        (lambda f: (f / "features.json").unlink(), r"3.0.1: expected a data set of images with labels, found: "),
    ],
)
def test_damaged_data_sets(tmp_path, damage, message):
    write_prepared(tmp_path)
    damage(tmp_path / "mnist" / "3.0.1")
    with pytest.raises(InputError, match=message) as error:
        load_prepared(tmp_path)
    assert "\n" not in str(error.value)


def test_records_that_are_no_images(tmp_path):
    write_prepared(tmp_path, shards=(2,), classes=2)
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(tmp_path / "mnist/3.0.1/mnist-train.array_record-00000-of-00001"), "group_size:1")
    writer.write(b"no example")
    writer.write(b"no example")
    writer.close()
    with pytest.raises(InputError, match=r"split 'train': expected readable examples, found: "):
        load_prepared(tmp_path, classes=2)


def test_a_data_set_for_another_network(tmp_path):
    write_prepared(tmp_path, shape=(8, 8, 3))
    with pytest.raises(InputError, match="data 'mnist': expected 43 classes as model.num_classes says, found 10"):
        load_prepared(tmp_path, classes=43)
    with pytest.raises(InputError, match=r"3.0.1: split 'train', example 0: expected a grey image"):
        load_prepared(tmp_path)


# The real ones.

TFDS = os.environ.get("OTBR_JAX_TFDS", "")
needs_real = pytest.mark.skipif(not TFDS, reason="OTBR_JAX_TFDS names no folder of prepared cifar10 and mnist")


@needs_real
def test_mnist():
    data = load_prepared(TFDS, shape=(28, 28, 1))
    np.testing.assert_array_equal(
        np.bincount(data.train.labels), [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    )
    assert data.test.images.shape == (10_000, 28, 28, 1)
    assert data.train.images.mean() / 255 == pytest.approx(0.1307, abs=1e-4)
    assert data.train.images.std() / 255 == pytest.approx(0.3081, abs=1e-4)


@needs_real
def test_cifar10():
    data = load_prepared(TFDS, "cifar10", shape=(32, 32, 3))
    np.testing.assert_array_equal(np.bincount(data.train.labels), [5000] * 10)
    np.testing.assert_array_equal(np.bincount(data.test.labels), [1000] * 10)
    np.testing.assert_allclose(data.train.images.mean((0, 1, 2)) / 255, (0.4914, 0.4822, 0.4465), atol=1e-3)
    some = load_prepared(TFDS, "cifar10", shape=(32, 32, 3), train_images=1000, test_images=100)
    np.testing.assert_array_equal(np.bincount(some.train.labels), [100] * 10)
    np.testing.assert_array_equal(np.bincount(some.test.labels), [10] * 10)


# Archives of this project's own data sets, in small.


def make_zip(path, files):
    with zipfile.ZipFile(path, "w") as file:
        for name, content in files.items():
            file.writestr(name, content)
    return path


def make_gtsrb(folder):
    train, test = noise(4, 9, 7, 3), noise(2, 6, 11, 3, seed=1)
    names = [f"{label:05d}/{track:05d}_00000.ppm" for label in (0, 42) for track in range(2)]
    root = "GTSRB/Final_Training/Images"
    files = {f"{root}/{name}": png(image, "ppm") for name, image in zip(names, train, strict=True)}
    table = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\r\n"
    make_zip(folder / "GTSRB_Final_Training_Images.zip", files | {f"{root}/00000/GT-00000.csv": table})
    root = "GTSRB/Final_Test/Images"
    files = {f"{root}/{place:05d}.ppm": png(image, "ppm") for place, image in enumerate(test)}
    make_zip(folder / "GTSRB_Final_Test_Images.zip", files | {f"{root}/GT-final_test.test.csv": table[:-10]})
    rows = "".join(f"{place:05d}.ppm;11;6;0;0;5;5;{label}\r\n" for place, label in enumerate((16, 1)))
    make_zip(folder / "GTSRB_Final_Test_GT.zip", {"GT-final_test.csv": table + rows})
    return train, test


def make_tiny_imagenet(folder):
    root = "tiny-imagenet-200"
    wordnet = ("n02", "n01")
    files = {f"{root}/wnids.txt": "\n".join(wordnet) + "\n"}
    train = {
        f"{root}/train/{name}/images/{name}_0.JPEG": png(noise(1, 64, 64, 3, seed=seed)[0], "jpeg")
        for seed, name in enumerate(wordnet)
    }
    test = {
        f"{root}/val/images/val_{place}.JPEG": png(noise(1, 64, 64, 1, seed=place)[0], "jpeg") for place in range(2)
    }
    files |= train | {f"{root}/train/n01/n01_boxes.txt": "", f"{root}/test/images/test_0.JPEG": b"unlabelled"} | test
    files[f"{root}/val/val_annotations.txt"] = "val_0.JPEG\tn02\t0\t0\t9\t9\nval_1.JPEG\tn01\t0\t0\t9\t9\n"
    make_zip(folder / "tiny-imagenet-200.zip", files)
    return train, test


def test_gtsrb_archives_are_parsed(tmp_path):
    from otbr_jax.data import gtsrb

    train, test = make_gtsrb(tmp_path)
    for images, labels, parsed in (
        (train, [0, 0, 42, 42], gtsrb.training_examples(tmp_path / "GTSRB_Final_Training_Images.zip")),
        (
            test,
            [16, 1],
            gtsrb.test_examples(tmp_path / "GTSRB_Final_Test_Images.zip", tmp_path / "GTSRB_Final_Test_GT.zip"),
        ),
    ):
        keys, examples = zip(*parsed, strict=True)
        assert len(set(keys)) == len(images)
        assert [example["label"] for example in examples] == labels
        for image, example in zip(images, examples, strict=True):
            assert example["image"].startswith(b"\x89PNG")
            np.testing.assert_array_equal(decode(example["image"], shape=image.shape)[0], image)


def test_the_tiny_imagenet_archive_is_parsed(tmp_path):
    from otbr_jax.data import tiny_imagenet

    train, test = make_tiny_imagenet(tmp_path)
    parsed = dict(tiny_imagenet.training_examples(tmp_path / "tiny-imagenet-200.zip"))
    assert {name: example["image"] for name, example in parsed.items()} == train
    assert [example["label"] for example in parsed.values()] == [1, 0]
    parsed = dict(tiny_imagenet.test_examples(tmp_path / "tiny-imagenet-200.zip"))
    assert {name: example["image"] for name, example in parsed.items()} == test
    assert [example["label"] for example in parsed.values()] == [1, 0]


class Manager:
    """TFDS's download manager as far as it is used; it downloads 'published'."""

    def __init__(self, downloads, manual=None):
        self.downloads, self.manual = downloads, manual

    @property
    def manual_dir(self):
        if self.manual is None:
            raise AssertionError("no manual directory")
        return self.manual

    def download(self, url):
        path = self.downloads / hashlib.sha256(url.encode()).hexdigest()
        path.write_bytes(b"published")
        return path


def test_archives_are_verified_whether_downloaded_or_given(tmp_path):
    downloads, manual = tmp_path / "downloads", tmp_path / "manual"
    downloads.mkdir()
    manual.mkdir()
    known = {"http://site/one.zip": hashlib.md5(b"published").hexdigest()}
    (path,) = archives.fetch(Manager(downloads), known)
    assert path.parent == downloads
    (path,) = archives.fetch(Manager(downloads, manual), known)
    assert path.parent == downloads
    (manual / "one.zip").write_bytes(b"published")
    assert archives.fetch(Manager(downloads, manual), known) == [manual / "one.zip"]
    (manual / "one.zip").write_bytes(b"altered")
    with pytest.raises(InputError) as error:
        archives.fetch(Manager(downloads, manual), known)
    assert str(error.value) == (
        f"{manual / 'one.zip'}: expected MD5 {hashlib.md5(b'published').hexdigest()} of http://site/one.zip, "
        f"found {hashlib.md5(b'altered').hexdigest()}"
    )


# Preparing.


def test_preparing_keeps_what_is_there(tmp_path):
    write_prepared(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    process = launch("prepare_data", "--name=mnist", f"--data_dir={tmp_path}")
    assert process.stdout == f"{tmp_path / 'mnist' / '3.0.1'} is there already; it stays as it is\n", process.stderr
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_preparing_an_unknown_data_set():
    process = launch("prepare_data", "--name=cifar100")
    assert process.returncode == 2
    assert process.stderr.splitlines()[-1] == (
        "error: --name: expected one of ['cifar10', 'mnist', 'gtsrb', 'tiny_imagenet'], found 'cifar100'"
    )


def test_preparing_where_nothing_can_be(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with pytest.raises(InputError, match=r"--manual_dir: expected a folder of archives, found none at '.*nowhere'"):
        prepare.prepare("gtsrb", str(tmp_path), str(tmp_path / "nowhere"))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--data_dir: cannot write gtsrb in .*file \(File exists\)"):
        prepare.prepare("gtsrb", str(tmp_path / "file"))


def test_preparing_without_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"--name: preparing needs the package tensorflow, found none: pip install -e"):
        prepare.prepare("gtsrb", str(tmp_path / "data"))
    assert not (tmp_path / "data").exists()


needs_tensorflow = pytest.mark.skipif(
    None in map(importlib.util.find_spec, ("tensorflow", "importlib_resources")),
    reason="the extra `prepare` is not installed: TensorFlow writes data sets",
)

PREPARE = """
from otbr_jax.data import {name}
from otbr_jax.data.prepare import prepare
from otbr_jax.errors import InputError
from tensorflow_datasets.core.download import downloader
downloader.MAX_RETRIES = 0  # not three minutes until a missing server is believed
{name}.ARCHIVES = {archives!r}
try:
    print(prepare({name!r}, {data!r}, {manual!r}))
except InputError as error:
    print("refused:", error)
"""


def preparation(name, tmp_path, files):
    """Code that prepares a data set for which these files, as they are now, are the published archives."""
    checksums = {f"http://localhost/{file.name}": hashlib.md5(file.read_bytes()).hexdigest() for file in files}
    return PREPARE.format(name=name, archives=checksums, data=str(tmp_path / "data"), manual=str(tmp_path / "manual"))


@needs_tensorflow
def test_gtsrb_is_prepared_and_read(tmp_path):
    (tmp_path / "manual").mkdir()
    train, _ = make_gtsrb(tmp_path / "manual")
    names = ("Training_Images", "Test_Images", "Test_GT")
    files = [tmp_path / "manual" / f"GTSRB_Final_{name}.zip" for name in names]
    code = preparation("gtsrb", tmp_path, files)
    whole = files[0].read_bytes()
    files[0].write_bytes(whole[:-1])
    process = run("-c", code)
    assert process.stdout.splitlines()[-1].startswith(f"refused: {files[0]}: expected MD5 "), process.stderr
    assert list((tmp_path / "data").iterdir()) == []
    files[0].unlink()
    process = run("-c", code)  # nobody answers at that address
    assert process.stdout.splitlines()[-1].startswith("refused: gtsrb: cannot download (HTTP"), process.stderr
    assert list((tmp_path / "data").iterdir()) == []
    files[0].write_bytes(whole)
    process = run("-c", code)
    folder = tmp_path / "data" / "gtsrb" / "1.0.0"
    assert process.stdout.splitlines()[-1] == f"wrote {folder}: 4 train images, 2 test images", process.stderr
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["gtsrb"]
    data = load_prepared(tmp_path / "data", "gtsrb", shape=(9, 7, 3), classes=43)
    assert {image.tobytes() for image in data.train.images} == {image.tobytes() for image in train}
    np.testing.assert_array_equal(np.sort(data.train.labels), [0, 0, 42, 42])
    assert data.provenance == "gtsrb/1.0.0 of TensorFlow Datasets, as 9x7x3: 4 training and 2 test images"


@needs_tensorflow
def test_tiny_imagenet_is_prepared_and_read(tmp_path):
    (tmp_path / "manual").mkdir()
    train, _ = make_tiny_imagenet(tmp_path / "manual")
    code = preparation("tiny_imagenet", tmp_path, [tmp_path / "manual" / "tiny-imagenet-200.zip"])
    process = run("-c", code)
    assert process.stdout.splitlines()[-1].endswith("1.0.0: 2 train images, 2 test images"), process.stderr
    data = load_prepared(tmp_path / "data", "tiny_imagenet", shape=(64, 64, 3), classes=200)
    expected = decode(*train.values(), shape=(64, 64, 3))
    assert {image.tobytes() for image in data.train.images} == {image.tobytes() for image in expected}
    np.testing.assert_array_equal(np.sort(data.test.labels), [0, 1])


@needs_tensorflow
def test_the_catalogues_archives_are_verified_too(tmp_path):
    (tmp_path / "manual").mkdir()
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (tmp_path / "manual" / f"{name}-ubyte.gz").write_bytes(b"altered")
    folders = (f"--data_dir={tmp_path / 'data'}", f"--manual_dir={tmp_path / 'manual'}")
    process = launch("prepare_data", "--name=mnist", *folders)
    assert process.returncode == 2
    assert process.stderr.splitlines()[-1].startswith("error: mnist: Artifact https://"), process.stderr
    assert "has wrong checksum: * Expected: UrlInfo(" in process.stderr
    assert list((tmp_path / "data").iterdir()) == []
