"""NAD: the loss and its gradients as the paper's formula in PyTorch gives them, which layers are compared, a report."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import tuning_networks
import tuning_runs
from torch.nn import functional

from otbr_jax import InputError, set_up, trace
from otbr_jax.defenses import nad
from otbr_jax.defenses.nad import AttentionSettings, NADConfig, NADSettings, attention, attention_layers
from otbr_jax.defenses.tuning import Tuned
from otbr_jax.models import registry
from otbr_jax.models.registry import ModelConfig
from otbr_jax.types import split


def attention_in_pytorch(features, power):
    """The paper's attention map of `[n, c, h, w]`, in length 1 as the published code has it."""
    strength = features.abs().pow(power).sum(1).flatten(1)
    return strength / (strength.norm(dim=1, keepdim=True) + 1e-6)


@pytest.mark.parametrize("power", [2.0, 3.0])
def test_the_loss_and_its_gradients_are_those_of_pytorch(power):
    network, variables, student = tuning_networks.pair()
    clean, (images, labels) = tuning_networks.few_images()
    params, state = split(variables)
    moved = {"params": jax.tree.map(lambda p: 1.2 * p + 0.05, params), **state}
    teacher = tuning_networks.to_torch(moved).eval()
    setup = set_up(network, trace(network.apply, variables, clean.images[:1]))
    objective = nad.objective(setup, params, AttentionSettings((3.0, 700.0), power), teacher=Tuned(moved, {}))
    found, gradients = jax.jit(objective)(params, state, clean)

    student.train()
    # Of two convolutions the first sees the images: what remains is the input of the second, with the last beta.
    theirs = attention_in_pytorch(teacher.features(images)[0], power)
    loss = functional.cross_entropy(student(images), labels)
    ours = attention_in_pytorch(student.features(images)[0], power)
    loss = loss + 700.0 * functional.mse_loss(ours, theirs.detach())
    loss.backward()
    np.testing.assert_allclose(found.loss, loss.item(), rtol=1e-5)
    assert float(found.loss) - functional.cross_entropy(student(images), labels).item() > 0.01
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.copy_(parameter.grad)
    tuning_networks.assert_same({"params": gradients}, student, atol=2e-4)


def test_attention_has_length_one_and_gradients_where_nothing_is_seen():
    features = jax.random.normal(jax.random.key(0), (2, 3, 3, 5)).at[1].set(0)
    found = attention(features, power=2.0)
    assert found.shape == (2, 9)
    np.testing.assert_allclose(jnp.linalg.norm(found, axis=1), [1, 0], rtol=1e-4)
    gradients = jax.grad(lambda f: jnp.sum(attention(f, power=2.0) ** 3))(features)
    assert np.isfinite(gradients).all()
    assert not gradients[1].any()


def layers_of(name, count=3, **settings):
    config = ModelConfig(name=name, num_classes=10, **settings)
    network, init = registry.build(config)
    images = jnp.zeros((2, *config.image_shape))
    variables = jax.eval_shape(init, jax.random.key(0))
    setup = set_up(network, trace(network.apply, variables, images))
    return attention_layers(network, setup.layers, variables, images, count=count)


def test_the_last_layer_of_each_size_is_compared():
    resnet = {"name": "preact_resnet18", "width": 4, "image_shape": (16, 16, 1)}
    assert layers_of(**resnet) == [
        "params/layer3.0/conv1/kernel",  # whose input is the output of the second stage, 8 x 8
        "params/layer4.0/conv1/kernel",
        "params/layer4.1/conv2/kernel",
    ]
    assert layers_of(**resnet, count=2) == layers_of(**resnet)[1:]


def test_a_network_without_positions_is_named():
    class Flat:
        image_shape = (2, 2, 1)

        @staticmethod
        def apply(variables, images):
            hidden = images.reshape(len(images), -1) @ variables["params"]["one"]
            return jax.nn.relu(jax.nn.relu(hidden) @ variables["params"]["two"]) @ variables["params"]["three"]

    variables = {"params": {"one": jnp.ones((4, 5)), "two": jnp.ones((5, 6)), "three": jnp.ones((6, 3))}}
    layers = trace(Flat.apply, variables, jnp.zeros((2, 2, 2, 1))).layers
    with pytest.raises(InputError, match="^defense: expected a network with a layer that sees several positions"):
        attention_layers(Flat, layers, variables, jnp.zeros((2, 2, 2, 1)), count=3)


def test_a_run_leaves_a_report(tmp_path):
    def own(tuning):
        return {"nad": NADConfig(teacher=dataclasses.replace(tuning, epochs=1), finetuning=tuning)}

    result, summary, page = tuning_runs.run("nad", tmp_path / "w", **own(tuning_runs.BRIEF))
    assert [*summary["metrics"]] == ["victim", "teacher", "finetuned"]
    assert (len(summary["teacher"]["loss"]), len(summary["finetuning"]["loss"])) == (1, 2)
    assert min(tuning_runs.moved_params(result)) > 0
    assert "attention distilled from a teacher of 1 epochs, 2 epochs" in page
    tuning_runs.assert_bad_input_is_one_line("nad", tmp_path / "w", group="nad.teacher", own=own)


def test_the_defaults_are_those_of_backdoorbench():
    method = NADSettings().nad
    assert (method.teacher.epochs, method.finetuning.epochs, method.betas, method.power) == (
        10,
        100,
        (500, 1000, 1000),
        2,
    )
    assert {(tuning.weight_decay, tuning.alpha) for tuning in (method.teacher, method.finetuning)} == {(1e-4, 0.0)}
