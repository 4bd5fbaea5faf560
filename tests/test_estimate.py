"""What is said before a step starts: how long it takes, and that memory will not do."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from otbr_jax import plan as plans
from otbr_jax.defenses.disarm import DEFENSE, DisarmSettings
from otbr_jax.defenses.otbr import OTBRConfig, plan
from otbr_jax.inversion import InversionConfig
from otbr_jax.models.registry import ModelConfig, build
from otbr_jax.numerics.flops import flops_of
from otbr_jax.runs import estimate, memory
from otbr_jax.runs.networks import open_network

MODEL = ModelConfig("preact_resnet10", width=2, image_shape=(8, 8, 1), num_classes=4)


@pytest.fixture(scope="module")
def small():
    """(setup, variables) of a small network."""
    subject = open_network(MODEL)
    setup = plans.set_up(subject.network, subject.graph)
    return setup, jax.jit(build(MODEL)[1])(jax.random.key(0))


def test_a_long_search_is_said_and_a_short_one_is_not(small, monkeypatch, caplog):
    setup, variables = small
    pictures, *others = DEFENSE.plan(DisarmSettings())
    assert estimate.announce(pictures, setup, variables) is None  # as nothing is compiled for it
    monkeypatch.setattr(estimate, "_time", lambda *_: (1.0, 2.0))
    monkeypatch.setattr(estimate, "_WORTH", 0)
    line = estimate.announce(pictures, setup, variables)
    gradients = 4 * 60 * 8 + 6 * 24 * 16 * (4 + 4)
    days = (3000 + 6 * 128 * 16 + 2 * gradients) / 86400
    assert line.startswith(f"a search of 4 classes by 6 families of triggers will take about {days * 24:.0f} h on ")
    assert line.endswith("; less with --config.detection.families=patch,additive")
    assert [record.getMessage() for record in caplog.records] == [line]
    assert [estimate.announce(step, setup, variables) for step in others[:4]] == [None] * 4
    assert estimate.announce(pictures, setup, None) is None
    many = dataclasses.replace(setup, network=dataclasses.replace(setup.network, num_classes=1000))
    assert "; less with --config.inversion.among=20, --config.detection" in estimate.announce(pictures, many, variables)
    monkeypatch.setattr(estimate, "_time", lambda *_: (1e-4, 1e-4))
    assert estimate.announce(pictures, setup, variables) is None


def test_fewer_classes_and_more_devices_take_less(small, monkeypatch):
    setup, variables = small
    monkeypatch.setattr(estimate, "_time", lambda *_: (10.0, 10.0))
    monkeypatch.setattr(estimate, "_WORTH", 0)
    pictures, *_ = DEFENSE.plan(DisarmSettings(inversion=InversionConfig(among=3)))
    assert estimate.announce(pictures, setup, variables).startswith("a search of 3 classes ")
    unlearned, *_ = plan(OTBRConfig())
    line = estimate.announce(unlearned, setup, variables, devices=2)
    assert line.startswith("20 steps of unlearning on 256 images will take about 11 h on ")
    assert estimate.announce(unlearned, setup, variables).startswith(
        "20 steps of unlearning on 256 images will take about 21 h"
    )


def test_an_answer_and_a_gradient_are_timed(small):
    forward, gradient = estimate._time(*small)
    assert forward > 0
    assert gradient > 0


@pytest.mark.parametrize(("seconds", "said"), [(601, "10 min"), (5399, "90 min"), (7200, "2 h"), (86400 * 6, "6 days")])
def test_durations(seconds, said):
    assert estimate._duration(seconds) == said


def test_operations_of_a_network_by_hand():
    class Net:
        image_shape = (8, 8, 3)

        @staticmethod
        def answer(variables, images):
            put = jax.lax.conv_general_dilated(
                images, variables["k"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            again = jax.lax.scan(lambda x, _: (x @ variables["m"], None), put.mean((1, 2)), None, length=5)[0]
            return jax.jit(jnp.tanh)(again)

    found = flops_of(Net, {"k": jnp.ones((3, 3, 3, 7)), "m": jnp.ones((7, 7))})
    assert found.operations == 2 * 64 * 7 * 27 + 5 * 2 * 7 * 7
    assert found.bytes == 4 * (64 * 7 + 5 * 7)


def test_memory_that_will_not_do_is_said(monkeypatch, caplog):
    assert memory.machine() > 100
    monkeypatch.setattr(memory, "machine", lambda: 8000.0)
    line = memory.warn("unlearned", 34452.0, lighter="unlearning.batch_size")
    assert line == "unlearned needs 34.5 GB of memory, and there are 8.0; lower unlearning.batch_size"
    assert [record.getMessage() for record in caplog.records] == [line]
    assert memory.warn("fused", 9000.0, lighter="") == "fused needs 9.0 GB of memory, and there are 8.0"
    assert memory.warn("fused", 7000.0, lighter="") is None
    assert memory.warn("fused", None, lighter="") is None
