"""One call for every defence: what it says of bad input, and that it is the plan that runs on disk computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from otbr_jax import Batch, InputError, defend, otbr
from otbr_jax.contrib.otbr_plus import OTBRSettings
from otbr_jax.defenses.clp import CLPSettings
from otbr_jax.defenses.otbr import OTBRConfig
from otbr_jax.steps.unlearn import UnlearningConfig

SMALL = OTBRConfig(unlearning=UnlearningConfig(steps=2, batch_size=8), gamma=0.2)


def clean(**changes):
    labels = np.arange(20) % 10
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), dtype=np.uint8)
    return Batch(**{"images": images, "labels": labels} | changes)


def test_it_is_the_pure_function_of_the_defence(moved):
    network, _, variables, graph = moved
    key = jax.random.key(3)
    found = defend("otbr", network, variables, key=key, config=OTBRSettings(otbr=SMALL))
    expected, _ = otbr(network, variables, graph, key=key, config=SMALL)
    jax.tree.map(np.testing.assert_array_equal, found.variables, expected)
    assert found.outcome.choice["gamma"] == 0.2
    assert "scores" in found.values


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("anq", {}, r"defense: expected one of \[.*'tsbd'.*\], found 'anq'"),
        ("tsbd", {}, "clean: expected clean images and labels, which 'tsbd' needs, found none"),
        ("otbr", {"clean": clean()}, "clean: expected none, since 'otbr' takes no images, found 20"),
        ("tsbd", {"clean": clean(images=np.zeros((20, 8, 8, 1)))}, r"clean.images: expected uint8 .*float64 \[20, 8"),
        (
            "tsbd",
            {"clean": clean(labels=np.arange(20) % 9)},
            "clean.labels: .* 10 classes, 0 to 9, found none.* 9",
        ),
        ("tsbd", {"clean": clean(labels=np.arange(20) % 11)}, "clean.labels: .* 10 classes, 0 to 9, found label 10"),
        ("tsbd", {"clean": clean(labels=np.zeros(20))}, "clean.labels: expected 20 whole numbers, found float64"),
        ("tsbd", {"clean": clean()}, "tsbd.unlearning.batch_size: expected at most 20, as many as there are clean"),
        ("otbr", {"config": CLPSettings()}, "config: expected OTBRSettings of 'otbr', found CLPSettings"),
    ],
)
def test_bad_input_is_named(moved, name, given, message):
    network, _, variables, graph = moved
    with pytest.raises(InputError, match=message):
        defend(name, network, variables, key=jax.random.key(0), graph=graph, **given)


def test_weights_that_are_no_numbers_are_named(moved):
    network, _, variables, graph = moved
    broken = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), variables)
    with pytest.raises(InputError, match="variables: expected finite weights, found"):
        defend("otbr", network, broken, key=jax.random.key(0), graph=graph)


def test_clean_images_that_are_no_batch(moved):
    network, _, variables, _ = moved
    images, labels = np.zeros((10, 8, 8, 1), np.uint8), np.arange(10)
    for clean in ((images, labels), [images, labels]):
        with pytest.raises(InputError, match=r"^clean: expected otbr_jax.Batch\(images, labels\), found (tuple|list)$"):
            defend("ft", network, variables, key=jax.random.key(0), clean=clean)
