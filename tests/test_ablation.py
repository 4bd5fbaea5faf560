"""The ablation of TSBD on a tiny network: what is compared, what a trigger activates, whole neurons set to zero."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import DEVICES, VICTIM

from otbr_jax import InputError
from otbr_jax.defenses.tsbd import TSBDConfig
from otbr_jax.graph.choose import choose_layers
from otbr_jax.graph.trace import trace
from otbr_jax.models.registry import build
from otbr_jax.report import ablation_page
from otbr_jax.steps.finetune import FinetuningConfig
from otbr_jax.steps.prune import prune
from otbr_jax.steps.unlearn import CleanUnlearningConfig
from otbr_jax.studies import trigger_activation
from otbr_jax.studies.ablation import ABLATION, AblationConfig, rows
from otbr_jax.studies.study import run_study
from otbr_jax.types import named_leaves

CONFIG = AblationConfig(
    **VICTIM,
    tsbd=TSBDConfig(
        CleanUnlearningConfig(max_epochs=2, batch_size=32, learning_rate=1e-3),
        n=0.4,
        finetuning=FinetuningConfig(epochs=1, batch_size=32),
    ),
    n=(0.1, 0.4),
    poisoning_ratios=(0.05,),
    fractions=(0.01,),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("ablation") / "w"
    return workdir, run_study(ABLATION, CONFIG, workdir, devices=DEVICES)


@pytest.mark.slow
def test_what_an_ablation_says(finished, monkeypatch):
    workdir, found = finished
    made = rows(CONFIG, found)
    assert json.loads((workdir / "ablation.json").read_text()) == made
    assert [(row["choice"], row["scheme"], row["finetuning"]) for row in made] == [
        ("nwc", "sub-weights", "activeness-aware"),
        ("nwc", "all weights", "activeness-aware"),
        ("nwc", "whole neurons", "activeness-aware"),
        ("nwc", "sub-weights", "vanilla"),
        ("least active", "sub-weights", "activeness-aware"),
        ("random", "sub-weights", "activeness-aware"),
        ("nwc", "sub-weights", "activeness-aware"),
        ("nwc", "sub-weights", "activeness-aware"),
    ]
    assert [row["clean_images"] for row in made] == [65] * 7 + [13]
    assert [row["poisoning_ratio"] for row in made] == [0.1] * 6 + [0.05, 0.1]
    assert made[-1]["victim"] == made[0]["victim"] != made[-2]["victim"]
    # Fine-tuned in two ways from one start.
    assert made[0]["curve"][1]["reinitialized"] == made[3]["curve"][1]["reinitialized"]
    for comparison, names in {
        "what is set to zero": ["sub-weights", "all weights", "whole neurons"],
        "fine-tuning": ["none", "activeness-aware", "vanilla"],
        "which neurons": ["NWC", "least active", "random"],
        "poisoned": ["10 %", "5 %"],
        "clean images": ["5 %", "1 %"],
    }.items():
        assert list(ablation_page.compared(made, comparison, "badnets")) == names
    none = ablation_page.compared(made, "fine-tuning", "badnets")["none"]
    assert [point["acc"] for point in none] == [at["reinitialized"]["acc"] for at in made[0]["curve"]]
    page = (workdir / "ablation.html").read_text()
    assert page.count("<img") == 1
    assert "Trigger-activated neurons" in page
    table = ablation_page.tables(made, n=0.4)
    assert "whole neurons" in table
    assert "last layer" in table
    # A second run reloads everything.
    monkeypatch.setattr("otbr_jax.steps.finetune.finetune", None)
    again = run_study(ABLATION, CONFIG, workdir, devices=DEVICES)
    assert rows(CONFIG, again) == made


@pytest.fixture(scope="module")
def untrained():
    network, init = build(CONFIG.model)
    variables = init(jax.random.key(0))
    graph = trace(network.apply, variables, jnp.zeros((2, 8, 8, 1)))
    return network, variables, choose_layers(graph, "auto")


def test_a_trigger_activates_what_it_moves(untrained):
    network, variables, layers = untrained
    clean = jax.random.uniform(jax.random.key(1), (5, 8, 8, 1))
    same = trigger_activation.trigger_activated_change(network, variables, clean, clean, layers)
    assert list(same) == [layer.name for layer in layers]
    assert all(float(jnp.max(change)) == 0 for change in same.values())
    # The first convolution is linear: twice the trigger moves it twice as far, and the order of images means nothing.
    trigger = jnp.zeros_like(clean).at[:, -2:, -2:].set(0.25)
    first = layers[:1]
    once = trigger_activation.trigger_activated_change(network, variables, clean, clean + trigger, first)
    twice = trigger_activation.trigger_activated_change(
        network, variables, clean[::-1], (clean + 2 * trigger)[::-1], first
    )
    (name,) = once
    np.testing.assert_allclose(twice[name], 2 * once[name], rtol=1e-4)
    kernel = named_leaves(variables)[name]
    answer = jax.lax.conv_general_dilated(
        trigger[:1], kernel, (1, 1), [(1, 1), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(once[name], jnp.linalg.norm(answer[0], axis=(0, 1)), rtol=1e-4)


def test_a_silent_neuron_is_the_least_active(untrained):
    network, variables, layers = untrained
    scores = {layer.name: jnp.arange(layer.neurons, dtype=jnp.float32) for layer in layers[:1]}
    silent, _ = prune(variables, scores, layers[:1], count=1)
    active = trigger_activation.clean_activation(network, silent, jnp.ones((3, 8, 8, 1)), layers[:1])
    (values,) = active.values()
    assert float(values[-1]) == 0
    assert float(jnp.mean(values)) == pytest.approx(1)


def test_layers_that_are_no_modules(untrained):
    network, variables, layers = untrained
    plain = dataclasses.replace(network, apply=lambda variables, images: jnp.zeros((len(images), 10)))
    with pytest.raises(InputError, match="expected Flax Linen modules, found params/features.0/kernel without one"):
        trigger_activation.layer_outputs(plain, variables, jnp.ones((1, 8, 8, 1)), layers[:1])


def test_a_batch_that_devices_cannot_share(tmp_path):
    odd = dataclasses.replace(CONFIG.tsbd, finetuning=FinetuningConfig(epochs=1, batch_size=31))
    with pytest.raises(InputError, match="tsbd.finetuning.batch_size: .* multiple of the 2 devices, .* found 31"):
        run_study(ABLATION, dataclasses.replace(CONFIG, tsbd=odd), tmp_path / "w", devices=jax.local_devices()[:2])
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        (r"top: expected a number in \(0, 1\], found 0", {"top": 0.0}),
        (r"tsbd.n: expected one of n, \[0.3\], found 0.4", {"n": (0.3,)}),
        (r"poisoning_ratios: expected each once and not 0.1 again", {"poisoning_ratios": (0.1,)}),
        (r"fractions: expected each once and not 0.05 again", {"fractions": (0.01, 0.01)}),
        (r"n: expected a list of numbers in \[0, 1\], found 1.4 among them", {"n": (0.4, 1.4)}),
        (
            r"poisoning_ratios: expected none, since model.checkpoint is the victim, found \(0.05,\)",
            {"model": dataclasses.replace(CONFIG.model, checkpoint="victim.pt")},
        ),
        ("attack.name: expected an attack, since a backdoor is to be removed", {"attacks": ("none",)}),
    ],
)
def test_bad_settings(message, changes):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(CONFIG, **changes)
