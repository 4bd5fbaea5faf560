"""FT-SAM: the same step as adaptive SAM written in PyTorch, as optax's SAM where all weights are 1, and a report."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import tuning_networks
import tuning_runs

from otbr_jax import InputError, set_up, trace
from otbr_jax import plan as plans
from otbr_jax.defenses import ft_sam
from otbr_jax.defenses.ft import PUBLISHED
from otbr_jax.defenses.ft_sam import FTSAMSettings, SAMConfig, smoothed
from otbr_jax.steps.finetune import FinetuningConfig
from otbr_jax.steps.sharpness import perturbation, sharpness_aware

PARAMS = {"a": jnp.array([[1.0, -2.0], [0.5, 0.0]]), "b": {"c": jnp.array([3.0, -0.2, 1.5])}}
GRADIENTS = {"a": jnp.array([[0.1, 0.3], [-2.0, 5.0]]), "b": {"c": jnp.array([0.0, -1.0, 0.7])}}


def adaptive_sam_in_pytorch(model, images, labels, *, rho, smoothing, steps):
    """The algorithm of arXiv 2304.11823 with SGD, a constant learning rate."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    probabilities = torch.full((len(labels), 10), smoothing / 9)
    probabilities[torch.arange(len(labels)), labels] = 1 - smoothing
    model.train()

    def loss():
        return -(probabilities * torch.log_softmax(model(images), dim=1)).sum(1).mean()

    for _ in range(steps):
        parameters = list(model.parameters())
        gradients = torch.autograd.grad(loss(), parameters)
        own = [p.detach().clone() for p in parameters]
        length = torch.cat([(p.abs() * g).flatten() for p, g in zip(own, gradients, strict=True)]).norm()
        with torch.no_grad():
            for p, g in zip(parameters, gradients, strict=True):
                p += rho * p**2 * g / length
        optimizer.zero_grad()
        loss().backward()
        with torch.no_grad():
            for p, before in zip(parameters, own, strict=True):
                p.copy_(before)
        optimizer.step()


def test_two_steps_are_those_of_adaptive_sam_in_pytorch():
    network, variables, model = tuning_networks.pair()
    clean, (images, labels) = tuning_networks.few_images()
    tuning = FinetuningConfig(epochs=2, batch_size=len(labels), learning_rate=0.1, weight_decay=5e-4, alpha=0)
    config = FTSAMSettings(SAMConfig(rho=0.7, label_smoothing=0.2), tuning)
    setup = set_up(network, trace(network.apply, variables, clean.images[:1]))
    given = {"victim": variables, "clean": clean}
    found = plans.run(ft_sam.plan(config), setup, given, key=jax.random.key(0))["finetuned"]
    adaptive_sam_in_pytorch(model, images, labels, rho=0.7, smoothing=0.2, steps=2)
    tuning_networks.assert_same(found.variables, model)


@pytest.mark.parametrize("scale", [1.0, 1e-28])
def test_the_perturbation_has_length_rho_where_weights_are_the_unit(scale):
    gradients = jax.tree.map(lambda g: scale * g, GRADIENTS)
    moved = perturbation(PARAMS, gradients, rho=2.0)
    weights, eps, g = (np.concatenate([x.ravel() for x in jax.tree.leaves(t)]) for t in (PARAMS, moved, GRADIENTS))
    nonzero = weights != 0
    np.testing.assert_allclose(np.linalg.norm(eps[nonzero] / np.abs(weights[nonzero])), 2.0, rtol=1e-5)
    np.testing.assert_array_equal(eps[~nonzero], 0)
    np.testing.assert_allclose(eps, 2.0 * weights**2 * g / np.linalg.norm(weights * g), rtol=1e-5)


def test_without_a_gradient_nothing_moves():
    none = jax.tree.map(jnp.zeros_like, PARAMS)
    jax.tree.map(np.testing.assert_array_equal, perturbation(PARAMS, none, rho=2.0), none)


def test_where_all_weights_are_one_it_is_sam_of_optax():
    ones = jax.tree.map(jnp.ones_like, PARAMS)

    def loss(params):
        return sum(jnp.sum(jnp.sin(g * p)) for g, p in zip(*map(jax.tree.leaves, (GRADIENTS, params)), strict=True))

    gradients = jax.grad(loss)(ones)
    ours, _ = sharpness_aware(rho=0.3).update(gradients, optax.EmptyState(), ones, grad_fn=jax.grad(loss))
    outer, ascent = optax.sgd(1.0), optax.chain(optax.contrib.normalize(), optax.sgd(0.3))
    sam = optax.contrib.sam(outer, ascent, sync_period=2, opaque_mode=True, reset_state=False)
    theirs, _ = sam.update(gradients, sam.init(ones), ones, grad_fn=lambda params, _: jax.grad(loss)(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, -b, rtol=1e-5), ours, theirs)


def test_labels_are_smoothed_over_the_other_classes():
    found = smoothed(jnp.array([1, 2]), 3, smoothing=0.1)
    np.testing.assert_allclose(found, [[0.05, 0.9, 0.05], [0.05, 0.05, 0.9]], rtol=1e-6)


def test_a_run_leaves_a_report(tmp_path):
    result, summary, page = tuning_runs.run("ft_sam", tmp_path / "w", finetuning=tuning_runs.BRIEF)
    assert [*summary["metrics"]] == ["victim", "finetuned"]
    assert min(tuning_runs.moved_params(result)) > 0
    assert "sharpness-aware fine-tuning with rho 2, 2 epochs" in page
    tuning_runs.assert_bad_input_is_one_line(
        "ft_sam", tmp_path / "w", group="finetuning", own=lambda tuning: {"finetuning": tuning}
    )


def test_settings_that_do_not_fit():
    assert FTSAMSettings() == FTSAMSettings(SAMConfig(rho=2.0, label_smoothing=0.1), PUBLISHED)
    with pytest.raises(
        InputError, match=r"^finetuning.alpha: expected 0, since `sam` takes an ascent step already, found 0.7$"
    ):
        FTSAMSettings(finetuning=dataclasses.replace(PUBLISHED, alpha=0.7))
    with pytest.raises(InputError, match=r"^grad_fn: sharpness_aware expected it in update\(grads, state, params"):
        sharpness_aware(rho=1.0).update(GRADIENTS, optax.EmptyState(), PARAMS)
